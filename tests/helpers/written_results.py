"""Results that are written by hand, with scores that a test knows."""

from pathlib import Path

from pipelines.recipe.recipe import Recipe
from pipelines.results.files import write_manifest
from pipelines.results.predictions import write_predictions
from pipelines.tasks.base import RowResult


def write_classifier(
    folder: Path, recipe: Recipe, hits: list[int], *, rows: str = "a" * 64, **changes
) -> str:
    """Write what a run of a classifier leaves, but no weights; return the folder as typed.

    `hits` are 1 for each right row. `rows` is the fingerprint of the rows; `changes` replace
    metrics.
    """
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(recipe.to_json())
    results = [RowResult(f"rows.jsonl:{n + 1}", {}, f"label {n}", [h]) for n, h in enumerate(hits)]
    write_predictions(folder, results)
    sidecar = {
        "task": "TextClassification",
        "labels": ["a", "b"],
        "pad_token_id": 0,
        "max_length": 64,
        "base": None,
        "dataset": {
            "path": "./rows.jsonl",
            "name": None,
            "revision": None,
            "train_rows_sha256": "b" * 64,
            "eval_rows_sha256": rows,
            "splits": {"eval": {"split": "test"}},
        },
        "run": "run",
        "changed_on_resume": [],
        "hardware": "1 x CPU",
        "versions": {"torch": "2.13.0"},
        "metrics": {
            "primary": "accuracy",
            "accuracy": sum(hits) / len(hits),
            "confidence_interval": [0.25, 0.75],
            "loss": 0.5,
            "rows": len(hits),
            "seconds": 12.0,
            **changes,
        },
    }
    write_manifest(folder, sidecar)
    return str(folder)
