"""What a test does as a client of the Hub, in a process of its own with a cache of its own.

    python tests/helpers/hub_user.py VERB OUT.pt ARGUMENTS...
    python tests/helpers/hub_user.py publish_lines

HF_ENDPOINT is read when huggingface_hub is imported, so that each environment needs a process.
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

import torch

from helpers.factories import CASES, first_logits, make_tasks, method
from pipelines.data.load import load_splits
from pipelines.data.source import DatasetSource
from pipelines.evaluation.evaluate import evaluate as evaluate_result
from pipelines.hub.load import load_result
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Model, Scratch, Tokenizer, Train
from pipelines.tasks.causal_lm import CausalLM


def base(data: str, folder: str) -> Recipe:
    """Return a recipe that pretrains and publishes a small base."""
    source = DatasetSource(path=f"{data}/documents", eval_split="test")
    return Recipe(
        name="base",
        task=CausalLM(dataset=source, block_size=64),
        model=Scratch(
            n_layer=2, n_head=2, n_embd=64, n_positions=128, tokenizer=Tokenizer(vocab_size=400)
        ),
        train=Train(max_steps=12, learning_rate=1e-2, warmup_steps=0),
        output_dir=f"{folder}/base",
        push_to="local/base",
    )


def tuned(data: str, folder: str, task: str, name: str) -> Recipe:
    """Return a recipe that tunes the published base and publishes the result."""
    return Recipe(
        name=f"{task}-{name}",
        task=make_tasks(Path(data))[task],
        model=Model(name_or_path="local/base"),
        train=Train(max_steps=12, learning_rate=1e-2, warmup_steps=0),
        output_dir=f"{folder}/{task}-{name}",
        push_to=f"local/{task.replace('_', '-')}-{name}",
        **method(name),
    )


def logits_of(loaded_or_parts) -> torch.Tensor:
    """Return the logits of the first four evaluation rows."""
    recipe, model, tokenizer, labels = loaded_or_parts
    held_out = load_splits(recipe.task.dataset).held_out
    rows = recipe.task.features(held_out, tokenizer, labels, training=False).dataset[:4]
    return first_logits(recipe.task, model, tokenizer, rows)


def publish_all(data: str, folder: str) -> dict:
    """Train and publish a base, and every task by every method; return logits and metrics."""
    import pipelines.flow

    noted = {}
    real_save = pipelines.flow.save

    def save_and_note(trainer, run, state):
        logits = logits_of((run.recipe, trainer.model.eval(), run.tokenizer, run.labels))
        noted[run.recipe.push_to] = (logits, run.labels, run.metrics)
        return real_save(trainer, run, state)

    pipelines.flow.save = save_and_note
    pipelines.flow.run(base(data, folder))
    for task, name in CASES:
        pipelines.flow.run(tuned(data, folder, task, name))
    return noted


def load_all(*repos: str) -> dict:
    """Load and score each repository by its id."""
    found = {}
    for repo in repos:
        loaded = load_result(repo)
        logits = logits_of((loaded.recipe, loaded.model, loaded.tokenizer, loaded.labels))
        found[repo] = (logits, loaded.labels, evaluate_result(repo))
    return found


def run_cards(*repos: str) -> dict:
    """Execute the snippet without this project of each card; return what it prints and the model.

    As on a CPU without bfloat16 units: on others bitsandbytes rounds the scales of 4-bit weights to
    bfloat16, which moved logits of an answerer by 2 % of the largest; `load_result` keeps them.
    """
    import bitsandbytes.nn.modules

    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    found = {}
    for repo in repos:
        printed, names = execute(snippets_of(repo)[1], repo)
        loaded = load_result(repo)
        parts = (loaded.recipe, loaded.model, loaded.tokenizer, loaded.labels)
        model = names["model"].eval()
        plain_parts = (loaded.recipe, model, loaded.tokenizer, loaded.labels)
        plain = logits_of(plain_parts)
        model.set_attn_implementation(loaded.model.config._attn_implementation)
        alike = logits_of(plain_parts)
        found[repo] = (printed, plain, alike, logits_of(parts), model.config.id2label)
    return found


def run_own_snippets(*repos: str) -> dict:
    """Execute the snippet with this project of each card; return what it prints."""
    return {repo: execute(snippets_of(repo)[0], repo)[0] for repo in repos}


def snippets_of(repo: str) -> tuple[str, str]:
    """Return the Python of a card: with this project, and without it."""
    from huggingface_hub import hf_hub_download

    card = Path(hf_hub_download(repo, "README.md")).read_text(encoding="utf-8")
    own, plain = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return own, plain


def execute(snippet: str, name: str) -> tuple[str, dict]:
    """Execute Python code unchanged; return its output and its global names."""
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(snippet, name, "exec"), names)
    return out.getvalue(), names


def precisions(repo: str) -> dict:
    """Load a repository in each precision; return the logits."""
    found = {}
    for precision in ("fp32", "bf16", "8bit", "4bit"):
        loaded = load_result(repo, precision=precision)
        parts = (loaded.recipe, loaded.model, loaded.tokenizer, loaded.labels)
        found[precision] = logits_of(parts).float()
    return found


def preflight(recipe: str, repo: str) -> None:
    """Do what a run asks the Hub for before it trains."""
    from pipelines.hub.destination import check_destination
    from pipelines.hub.pin import pin_revisions

    check_destination(pin_revisions(Recipe.from_json(recipe)), repo, public=False)


def share_rows(repo: str, file: str) -> None:
    """Upload a file as the training rows of a dataset."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repo, repo_type="dataset", exist_ok=True)
    HfApi().upload_file(
        path_or_fileobj=file, path_in_repo="train.jsonl", repo_id=repo, repo_type="dataset"
    )


def read_rows(repo: str) -> None:
    """Read them, with nothing in the cache of datasets."""
    from pipelines.data.load import load_split

    assert len(load_split(DatasetSource(path=repo), "train").rows) == 64


def publish_lines() -> None:
    """Publish for each line of JSON on standard input; answer with exit code and message.

    A line holds the arguments of `publish`, or of another `verb`, and a `token`.
    """
    from pipelines.errors import DataError, RunError
    from pipelines.hub.publish import publish, publish_finished

    verbs = {
        "publish": publish,
        "publish_finished": lambda folder, **options: publish_finished(Path(folder), **options),
        "evaluate": evaluate_result,
        "preflight": preflight,
        "load": load_result,
        "share_rows": share_rows,
        "read_rows": read_rows,
    }
    print(json.dumps({"code": 0, "said": "ready"}), flush=True)
    for line in sys.stdin:
        arguments = json.loads(line)
        os.environ["HF_TOKEN"] = arguments.pop("token")
        code, said = 0, ""
        os.chdir(arguments.pop("cwd", "."))
        try:
            verbs[arguments.pop("verb", "publish")](**arguments)
        except RunError as error:
            code, said = error.exit_code, str(error)
        except DataError as error:
            code, said = 3, str(error)
        print(json.dumps({"code": code, "said": said}), flush=True)


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "publish_lines":
        publish_lines()
    else:
        torch.save(globals()[verb](*arguments[1:]), arguments[0])
