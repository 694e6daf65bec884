"""Recipes as Python source."""

import pytest

import pipelines
from pipelines.data.source import DatasetSource
from pipelines.recipe.python_source import literal, to_annotated_python, to_python
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.shipped import shipped_files
from pipelines.tasks import TextClassification
from pipelines.tasks.causal_lm import CausalLM
from pipelines.train import load_recipe

NAMES = {name: getattr(pipelines, name) for name in pipelines.__all__ if name[0].isupper()}


@pytest.mark.parametrize("name", sorted(shipped_files("recipes")))
def test_both_forms_make_the_same_value(name):
    recipe = load_recipe(shipped_files("recipes")[name])
    assert eval(to_python(recipe), dict(NAMES)) == recipe
    assert eval(to_annotated_python(recipe), dict(NAMES)) == recipe


@pytest.mark.parametrize(
    ("value", "source"),
    [
        (2e-4, "2e-4"),
        (0.0125, "0.0125"),
        (1.5e-5, "1.5e-5"),
        (3.0, "3"),
        (0.1, "0.1"),
        (("a",), '("a",)'),
        ({"a": 0.5}, '{"a": 0.5}'),
        ("it's", '"it\'s"'),
        ('say "a"', "'say \"a\"'"),
        ('"a" isn\'t', "'\"a\" isn\\'t'"),
        ("a\nb\\", '"a\\nb\\\\"'),
        (None, "None"),
    ],
)
def test_a_value_is_written_as_one_writes_it(value, source):
    assert literal(value) == source
    assert eval(source) == value


def test_defaults_are_left_out_unless_they_are_to_be_shown():
    assert to_python(Lora(r=8)) == "Lora(r=8)"
    assert to_python(Lora(r=8), shown={"lora_alpha"}) == "Lora(r=8, lora_alpha=32)"


def test_a_line_has_at_most_100_characters():
    labels = {f"label number {i}": 0.5 for i in range(4)}
    task = TextClassification(
        dataset=DatasetSource(path="a.csv"),
        problem_type="multi_label_classification",
        thresholds=labels,
    )
    assert to_python(task, "task = ").splitlines() == [
        "task = TextClassification(",
        '    dataset=DatasetSource(path="a.csv"),',
        '    problem_type="multi_label_classification",',
        # with the name and the braces it would have 4 + 101 characters
        "    thresholds={",
        *(f'        "label number {i}": 0.5,' for i in range(4)),
        "    },",
        ")",
    ]


def test_what_differs_from_a_default_is_marked():
    recipe = Recipe(
        name="a",
        task=CausalLM(dataset=DatasetSource(path="a.txt"), block_size=64),
        model=Model(name_or_path="b"),
        train=Train(learning_rate=1e-3),
    )
    marked = [line.strip() for line in to_annotated_python(recipe).splitlines() if "#" in line]
    assert marked == ["block_size=64,  # default: 1024", "learning_rate=1e-3,  # default: 2e-4"]
