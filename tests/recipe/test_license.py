"""The licence of a published result: a field of the recipe that does not belong to the training."""

import json
from dataclasses import replace

import pytest

from pipelines.data.source import DatasetSource
from pipelines.errors import RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model
from pipelines.recipe_cli import parse
from pipelines.tasks.causal_lm import CausalLM
from pipelines.training.identity import check_allowed, comparable

RECIPE = Recipe(
    name="a", task=CausalLM(dataset=DatasetSource(path="x")), model=Model(name_or_path="b")
)


def test_a_license_survives_recipe_json():
    licensed = replace(RECIPE, license="apache-2.0")
    assert json.loads(licensed.to_json())["license"] == "apache-2.0"
    assert Recipe.from_json(licensed.to_json()) == licensed


def test_a_recipe_json_written_before_there_was_a_license_loads():
    value = json.loads(RECIPE.to_json())
    del value["license"]
    assert Recipe.from_json(json.dumps(value)) == RECIPE


def test_a_license_is_given_on_the_command_line():
    assert parse(RECIPE, ["r.py", "--license", "mit"]) == replace(RECIPE, license="mit")
    assert parse(RECIPE, ["r.py"]).license is None


@pytest.mark.parametrize("license_id", ["Apache-2.0", "apache 2.0", "", "mit\ntags: [x]"])
def test_a_license_that_the_hub_would_refuse_is_refused(license_id):
    with pytest.raises(RecipeError, match="license: .* is not an id of a licence on the Hub"):
        replace(RECIPE, license=license_id)


@pytest.mark.parametrize("license_id", ["mit", "cc-by-sa-4.0", "llama3.1", "other"])
def test_licenses_of_the_hub_are_allowed(license_id):
    assert replace(RECIPE, license=license_id).license == license_id


def test_a_run_with_another_license_is_the_same_run():
    assert comparable(replace(RECIPE, license="mit")) == comparable(RECIPE)
    check_allowed(replace(RECIPE, license="mit", allow_changed=("world_size",)))
