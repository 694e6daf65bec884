"""Unknown verbs and flags, and what they were meant to be."""

import subprocess
import sys

import pytest

from helpers.factories import ROOT
from pipelines.cli.main import VERBS, usage
from pipelines.errors import RecipeError
from pipelines.flags import SYNONYMS, flags_in, help_of, nearest_flags
from pipelines.recipe_cli import parse
from pipelines.shipped import shipped_files
from pipelines.train import load_recipe


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(shipped_files("recipes")["helpdesk_classify_lora_8bit"])


def typed(*words, **environment):
    """Return the exit code of a command, and what it printed."""
    command = [sys.executable, "-m", "pipelines", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--lr", "--train.learning-rate"),
        ("--train.lr", "--train.learning-rate"),
        ("--train.lr=3", "--train.learning-rate"),
        ("--epochs", "--train.num-train-epochs"),
        ("--batch_size", "--train.global-batch-size"),
        ("--steps", "--train.max-steps"),
        ("--dropout", "--lora.lora-dropout"),
        ("--seed", "--train.seed"),
        ("--rank", "--lora.r"),
        ("--data", "--task.dataset.path"),
        ("--block-size", "--task.max-length"),
        ("--train.learning-rat", "--train.learning-rate"),
        ("--model", "--model.name-or-path"),
    ],
)
def test_an_unknown_flag_of_a_recipe_suggests_the_one_that_is_meant(recipe, flag, meant):
    with pytest.raises(RecipeError) as caught:
        parse(recipe, ["a.py", flag, "3"])
    (problem,) = caught.value.problems
    assert problem.message.startswith(f"unknown. Did you mean {meant}? ")


def test_every_unknown_flag_is_told_at_once(recipe):
    with pytest.raises(RecipeError) as caught:
        parse(recipe, ["a.py", "--lr", "3", "--zzz", "4", "--train.seed", "1"])
    assert [(p.path, p.message) for p in caught.value.problems] == [
        ("lr", "unknown. Did you mean --train.learning-rate? --help lists all flags."),
        ("zzz", "unknown. --help lists all flags."),
    ]


def test_a_flag_of_the_same_section_comes_first():
    known = ["task.dataset.name", "name", "model.seed"]
    assert nearest_flags("task.dataset.run-name", known) == ["task.dataset.name", "name"]


def test_synonyms_lead_to_flags_that_some_recipe_has():
    flags = set()
    for file in shipped_files("recipes").values():
        flags |= set(flags_in(help_of(type(load_recipe(file)), program="a", **options(file))))
    ends = {flag.rpartition(".")[2] for flag in flags}
    assert set(SYNONYMS.values()) - ends == set()
    assert set(SYNONYMS) & ends == {"dropout"}  # of random weights, not of checkpoints


def options(file):
    """Return how a recipe's flags are read."""
    import tyro

    return {"default": load_recipe(file), "config": (tyro.conf.AvoidSubcommands,)}


def test_a_verb_is_not_called_with_a_flag_that_it_does_not_have():
    assert typed("hub", "--prt", "0") == (
        2,
        "--prt: unknown. Did you mean --port? --help lists all flags.\n",
    )


def test_a_word_too_many_is_told():
    assert typed("merge", "a", "b", "c") == (
        2,
        "gpt2-recipes merge: 'c' is too much. --help lists what it takes.\n",
    )


def test_an_unknown_verb_names_the_nearest():
    assert typed("evalute") == (2, "evalute: no such verb. Did you mean evaluate?\n")
    code, said = typed("x")
    assert code == 2
    assert said == f"x: no such verb. Verbs: {', '.join(VERBS)}.\n"


def test_the_help_has_every_verb_and_the_exit_codes_and_fits_80_columns():
    lines = usage().splitlines()
    assert max(map(len, lines)) <= 80
    starts = [line.split()[0] for line in lines if line.startswith("  ")]
    codes = ["0", "1", "2", "3", "4", "5", "6", "75", "130"]
    assert starts == [*VERBS, *codes]
    assert typed("--help") == (0, usage() + "\n")


def test_the_help_has_the_exit_codes_of_their_page():
    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    (start,) = (i for i, line in enumerate(usage().splitlines()) if line == "Exit codes:")
    shown = [line.split()[0] for line in usage().splitlines()[start + 1 :] if line[:2] == "  "]
    assert shown == [row for row in rows if row.isdigit()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_every_verb(shell):
    code, script = typed("completion", shell)
    assert code == 0
    for verb in VERBS:
        assert f"'{verb}': {{" in script


def test_bash_completes_verbs_and_flags_and_else_files(tmp_path):
    script = tmp_path / "completion"
    script.write_text(typed("completion", "bash")[1], encoding="utf-8")
    call = "_tyro_gpt2_recipes; echo ${COMPREPLY[@]}"
    lines = [
        f"source {script}",
        f"COMP_WORDS=(gpt2-recipes pr); COMP_CWORD=1; {call}",
        f"COMP_WORDS=(gpt2-recipes predict a b --ke); COMP_CWORD=4; {call}",
        "complete -p gpt2-recipes",
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    verb, flag, completion = done.stdout.splitlines()
    assert (verb, flag) == ("predict", "--keep")
    assert "-o default" in completion
