"""Which words of a command line are searched, and what is refused before anything is loaded."""

from decimal import Decimal

import pytest

from pipelines.data.source import DatasetSource
from pipelines.errors import RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Scratch, Train
from pipelines.search.parameters import Choices, Range
from pipelines.search.plan import NUM_TRIALS, make_plan, split_flags
from pipelines.search.space import corners, split_words, with_values
from pipelines.tasks.text_classification import TextClassification

TASK = TextClassification(dataset=DatasetSource(path="nowhere"))
RECIPE = Recipe(name="a", task=TASK, model=Model(name_or_path="b"), lora=Lora())


def plan_of(*words, recipe=RECIPE):
    flags, others = split_flags(words)
    return make_plan(recipe, flags, others)


def problems_of(*words, recipe=RECIPE) -> dict:
    with pytest.raises(RecipeError) as caught:
        plan_of(*words, recipe=recipe)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_ranges_and_choices_are_searched_and_other_values_replace_those_of_the_recipe():
    words = "--train.learning-rate 1e-5:1e-3:log --lora.r=4,8,16 --lora.lora-dropout 0:0.5:0.2 "
    words += "--train.max-steps None,20 --lora.use-dora true,false --train.optim "
    words += "adamw_torch_fused,adamw_bnb_8bit --train.global-batch-size 8:64 --train.seed 3 "
    words += "--trials 7 --output-dir there --sampler random"
    plan = plan_of(*words.split())
    rate = Range("train.learning_rate", "1e-5:1e-3:log", Decimal("1e-5"), Decimal("1e-3"), False)
    dropout = Range("lora.lora_dropout", "0:0.5:0.2", Decimal(0), Decimal("0.4"), False)
    size = Range("train.global_batch_size", "8:64", Decimal(8), Decimal(64), True)
    assert plan.parameters == (
        rate.__class__(**vars(rate) | {"log": True}),
        Choices("lora.r", "4,8,16", (4, 8, 16)),
        dropout.__class__(**vars(dropout) | {"step": Decimal("0.2")}),
        Choices("train.max_steps", "None,20", (None, 20)),
        Choices("lora.use_dora", "true,false", (True, False)),
        Choices(
            "train.optim",
            "adamw_torch_fused,adamw_bnb_8bit",
            ("adamw_torch_fused", "adamw_bnb_8bit"),
        ),
        size,
    )
    assert plan.recipe.train.seed == 3
    assert plan.num_trials == 7
    assert str(plan.folder) == "there"


def test_without_flags_there_are_twenty_trials_in_a_folder_of_their_own():
    plan = plan_of("--lora.r", "4,8")
    assert plan.num_trials == NUM_TRIALS == 20
    assert str(plan.folder) == "runs/a-search"
    assert plan.objective.name == "accuracy"
    assert plan.objective.greater_is_better
    assert not plan_of("--lora.r", "4,8", "--metric", "loss").objective.greater_is_better


def test_a_tenth_of_the_training_rows_is_held_out_unless_the_recipe_has_test_rows():
    assert plan_of("--lora.r", "4,8").recipe.task.dataset.test_fraction == 0.1
    plan = plan_of("--lora.r", "4,8", "--task.dataset.test-split", "last")
    assert plan.recipe.task.dataset.test_fraction is None
    plan = plan_of("--lora.r", "4,8", "--task.dataset.scored-split", "eval")
    assert plan.recipe.task.dataset.reported_split == "test"


@pytest.mark.parametrize(
    ("words", "path", "message"),
    [
        ("--train.learning-rat 1e-5:1e-3", "train.learning_rat", "did you mean train.learning_r"),
        ("--traim.seed 1,2", "traim.seed", "did you mean train.seed?"),
        ("--quantization.llm-int8-threshold 1:6", "quantization.llm_int8_threshold", "has no quan"),
        ("--train.learning-rate 1e-3:1e-5", "train.learning_rate", "the range 1e-3:1e-5 is empty"),
        ("--lora.r 8:8", "lora.r", "the range 8:8 is empty: 8 is not below 8"),
        ("--train.learning-rate 0:1e-3:log", "train.learning_rate", "begins above 0"),
        ("--train.weight-decay 0:1:0", "train.weight_decay", "must be above 0"),
        ("--lora.r 4:16:32", "lora.r", "must be above 0 and fit the range"),
        ("--lora.r 4.5:16", "lora.r", "'4.5' in the range 4.5:16 is not a whole number"),
        ("--train.weight-decay 0:inf", "train.weight_decay", "'inf' in the range"),
        ("--train.weight-decay 0:1:2:3", "train.weight_decay", "is not a range"),
        ("--train.learning-rate 1e-5:100", "train.learning_rate", "100.0 is out of range"),
        ("--lora.r 0,4", "lora.r", "0 is out of range; it must be at least 1"),
        ("--lora.r 4,eight", "lora.r", "'eight' is not allowed; it takes int"),
        ("--lora.r 4,,8", "lora.r", "has an empty choice"),
        ("--lora.r 4,8,4", "lora.r", "has 4 more than once"),
        ("--lora.r 4,8 --lora.r 16", "lora.r", "is given more than once"),
        ("--train.optim muon,adamw_bnb_8bit", "train.optim", "'muon' is for weights from scratch"),
        ("--lora.target-modules c_attn,c_proj", "lora.target_modules", "a list of values"),
        ("--task.dataset.path a,b", "task.dataset.path", "scores of other rows"),
        ("--train.seed 3", "RECIPE", "gives no parameter to search"),
        ("--lora.r 4,8 --metric acuracy", "metric", "did you mean accuracy?"),
        ("--lora.r 4,8 --sampler tp", "sampler", "did you mean tpe?"),
        ("--lora.r 4,8 --trials 0", "trials", "at least 1"),
        ("--lora.r 4,8 --trials many", "trials", "'many' is not allowed"),
        ("--lora.r 4,8 --prune median", "prune", "Set --train.eval-steps"),
        ("--lora.r 4,8 --overwrite", "overwrite", "never replaces a study"),
        ("--lora.r 4,8 --task.dataset.test-fraction 0", "task.dataset.test_split", "other rows"),
        ("--lora.r 4:16 --sampler grid", "lora.r", "has no single values for --sampler grid"),
        (
            "--task.problem-type single_label_classification,regression",
            "metric",
            "accuracy and pearsonr",
        ),
    ],
)
def test_a_wrong_search_is_refused_in_one_message(words, path, message):
    problems = problems_of(*words.split())
    assert list(problems) == [path]
    assert message in problems[path]


def test_a_combination_that_the_recipe_refuses_is_found_at_the_bounds_of_the_space():
    scratch = Recipe(name="a", task=TASK, model=Scratch(size="tiny", n_positions=256))
    words = ["--model.n-embd", "30,128", "--model.n-head", "2,3"]
    problems = problems_of(*words, recipe=scratch)
    assert problems == {"model.n_embd": "128 is not a multiple of 3 heads."}
    trained = Recipe(
        name="a", task=TASK, model=RECIPE.model, train=Train(keep="best", eval_steps=5)
    )
    problems = problems_of("--train.eval-steps", "None,5", recipe=trained)
    assert problems == {
        "train.keep": "needs evaluations during the training. Set train.eval_steps."
    }


def test_the_combinations_of_a_large_space_are_drawn_with_every_bound_and_choice():
    words = []
    for name in ("seed", "logging_steps", "global_batch_size", "per_device_eval_batch_size"):
        words += [f"--train.{name}", ",".join(map(str, range(1, 9)))]
    parameters, plain = split_words(RECIPE, words)
    assert plain == []
    drawn = list(corners(parameters))
    assert len(drawn) == 1000  # of 8 to the power of 4
    for each in parameters:
        assert {values[each.path] for values in drawn} == set(each.values)


def test_values_below_a_section_are_replaced_together():
    found = with_values(RECIPE, {"lora.r": 4, "lora.lora_alpha": 8, "name": "b"})
    assert (found.lora.r, found.lora.lora_alpha, found.name) == (4, 8, "b")
    assert RECIPE.lora.r == 16
