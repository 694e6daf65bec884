"""Results of runs on a GPU: they score the same again, resume, merge and write."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from helpers.callbacks import SignalAt
from helpers.devices import distance, process_on
from helpers.factories import CASES, make_tasks, method
from helpers.resumable_runs import recipe_for
from pipelines.data.load import read_file
from pipelines.errors import Preempted
from pipelines.evaluation.evaluate import evaluate
from pipelines.flow import run
from pipelines.hub.load import load_result
from pipelines.inference.merge import merge
from pipelines.models.generation import continue_prompts
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Train
from pipelines.tasks.generation import Generation

pytestmark = pytest.mark.gpu
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
RESUMED = [
    ("causal_lm", "full", "bf16"),
    ("text_classification", "lora", "no"),
    ("question_answering", "8bit", "no"),
    ("instruction_tuning", "4bit", "bf16"),
]
TIE = {"fp32": 1e-3, "8bit": 0.1, "4bit": 0.1}
"""Largest difference of two logits that rounding may swap, relative to their standard deviation.

On a GPU the kernels of a product depend on the number of rows, and 4 bits multiply in bfloat16."""


@pytest.fixture(scope="module")
def result(tmp_path_factory, checkpoint, helpdesk, device):
    """Run a task with a method in a precision, once; return the result's folder."""
    folder = tmp_path_factory.mktemp("results")

    def result(task, name, precision="no"):
        out = folder / f"{task}-{name}-{precision}"
        if not out.is_dir():
            given = make_tasks(helpdesk)[task]
            recipe = Recipe(
                name=out.name,
                task=replace(given, dataset=replace(given.dataset, max_eval_rows=16)),
                model=Model(name_or_path=str(checkpoint)),
                train=Train(max_steps=2, learning_rate=1e-2, warmup_steps=0, save_steps=None),
                output_dir=str(out),
                **method(name),
            )
            with process_on(device, precision):
                run(recipe)
        return out

    return result


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_result_gives_its_score_again(result, on_device, task, name, precision):
    """In fp32, also that of a run in bfloat16, as accelerate_configs/single_gpu.yaml has it."""
    folder = result(task, name, precision)
    found = evaluate(folder)
    assert found.equal, (found.score, found.claimed)
    parameters = load_result(folder).model.parameters()
    assert {each.device.type for each in parameters} == {on_device}


@pytest.mark.parametrize("name", ["lora", "8bit", "4bit"])
@pytest.mark.parametrize("task", ["causal_lm", "text_classification", "question_answering"])
def test_an_adapter_merges_to_a_model_that_says_the_same(result, on_device, tmp_path, task, name):
    merged = merge(result(task, name), tmp_path / "merged")  # refuses other logits
    assert merged.moved < 1e-3 * max(1.0, merged.of)
    if name != "lora":
        assert 0 < merged.moved_from_quantized < merged.of
    assert evaluate(tmp_path / "merged").equal


@pytest.fixture
def deterministic():
    """Let kernels add in one order, so that the same run gives the same weights."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("task", "name", "precision"), RESUMED)
def test_a_stopped_run_resumes_to_the_weights_of_one_that_was_not(
    deterministic, device, checkpoint, helpdesk, tmp_path, task, name, precision
):
    given = recipe_for(task, name, checkpoint, helpdesk, tmp_path)
    few = replace(given.task, dataset=replace(given.task.dataset, max_eval_rows=8))
    parts, whole, short = [
        replace(given, task=few, output_dir=str(tmp_path / folder))
        for folder in ("parts", "whole", "short")
    ]
    with process_on(device, precision):
        with pytest.raises(Preempted):
            run(parts, [SignalAt(3)])
        run(parts)
        run(whole)
        run(replace(short, train=replace(short.train, max_steps=3)))
    file = WEIGHTS[name != "full"]
    resumed, expected, halfway = [
        load_file(recipe.folder / file) for recipe in (parts, whole, short)
    ]
    for key, tensor in expected.items():
        moved = float((tensor - halfway[key]).norm())
        assert float((resumed[key] - tensor).norm()) <= 1e-2 * moved, key


class TokenIds:
    """A tokenizer whose texts are the ids of their tokens."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __len__(self):
        return len(self.tokenizer)

    def decode(self, ids, **options):
        return " ".join(map(str, ids))


def written(loaded, prompts, options):
    """Return the ids that are written after each prompt, the end of the text included."""
    found = continue_prompts(loaded.model, TokenIds(loaded.tokenizer), prompts, options, seed=1)
    eos = loaded.tokenizer.eos_token_id
    return [[*map(int, each.text.split()), *([eos] if each.ended else [])] for each in found]


def difference_of_choices(model, prompt, first, second):
    """Return how far apart the logits are at which two continuations of a prompt part.

    It is relative to the standard deviation of all logits there; 0 for the same continuations.
    """
    if first == second:
        return 0.0
    same = os.path.commonprefix([first, second])
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *same]], device=model.device)
        logits = model(ids).logits[0, -1].float()
    chosen = logits[[first[len(same)], second[len(same)]]]
    return float((chosen[0] - chosen[1]).abs() / logits.std())


@pytest.fixture
def prompts(helpdesk, tokenizer):
    """Token ids of 12 texts of all lengths."""
    rows = read_file(helpdesk / "documents" / "test.jsonl").rows[:6] * 2
    texts = [row["text"][: 20 + 7 * i] for i, row in enumerate(rows)]
    return [[tokenizer.eos_token_id, *ids] for ids in tokenizer(texts)["input_ids"]]


@pytest.mark.parametrize("precision", TIE)
def test_a_text_in_a_batch_is_what_it_is_alone_but_for_ties(result, on_device, prompts, precision):
    loaded = load_result(result("causal_lm", "lora"), precision=precision)
    options = Generation(max_new_tokens=16)
    together = written(loaded, prompts, options)
    alone = [written(loaded, [prompt], options)[0] for prompt in prompts]
    assert len({tuple(each) for each in together}) > 6
    for prompt, first, second in zip(prompts, together, alone, strict=True):
        assert difference_of_choices(loaded.model, prompt, first, second) < TIE[precision]


@pytest.mark.parametrize(
    "options",
    [Generation(max_new_tokens=16, do_sample=True), Generation(max_new_tokens=8, num_beams=3)],
    ids=["sampled", "beams"],
)
def test_sampled_texts_and_beams_in_a_batch_are_what_they_are_alone(
    result, on_device, prompts, options
):
    loaded = load_result(result("causal_lm", "lora"), precision="fp32")
    together = written(loaded, prompts, options)
    alone = [written(loaded, [prompt], options)[0] for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize("task", ["causal_lm", "text_classification", "question_answering"])
def test_a_result_of_a_gpu_gives_the_same_logits_on_a_cpu(result, device, task, tokenizer):
    folder = result(task, "lora")
    found = []
    for where in (device, "cpu"):
        with process_on(where):
            model = load_result(folder).model
            ids = torch.arange(40, device=model.device)[None] % len(tokenizer)
            with torch.no_grad():
                outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
            found.append(torch.cat([v.flatten() for k, v in outputs.items() if "logits" in k]))
    assert distance(found[0], found[1]) < 1e-4
