"""Folders of finished runs that are written by hand, and their reports as tests read them."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from helpers.written_results import write_classifier
from pipelines.data.source import DatasetSource
from pipelines.html_report.statistics import histogram
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.results.files import write_manifest
from pipelines.results.predictions import write_predictions
from pipelines.tasks.base import RowResult
from pipelines.tasks.text_classification import TextClassification

RECIPE = Recipe(
    name="reported",
    task=TextClassification(dataset=DatasetSource(path="./rows.jsonl"), max_length=64),
    model=Model(name_or_path="user/base"),
    lora=Lora(r=8),
    train=Train(learning_rate=1e-3),
)
PROBABILITIES = [0.9, 0.8, 0.2, 0.7, 0.4, 0.1, 0.95, 0.6, 0.55, 0.3]
"""Of the right label of each row: 6 of 10 rows are right."""
LABELS = ("spam", "ham")


def classified(index: int, probability: float) -> RowResult:
    """Return the result of a row whose right label, the first of LABELS, has a probability."""
    scores = dict(zip(LABELS, (probability, 1 - probability), strict=True))
    label = max(scores, key=lambda name: scores[name])
    prediction = {"label": label, "score": scores[label], "scores": scores}
    return RowResult(f"rows.jsonl:{index + 1}", prediction, LABELS[0], [float(label == LABELS[0])])


def write_run(folder: Path, recipe: Recipe = RECIPE, *, texts: str = "text of row") -> Path:
    """Write what a run of a classifier leaves, with all that its report shows; return the folder.

    `texts` are in everything that comes from rows.
    """
    results = [classified(*each) for each in enumerate(PROBABILITIES)]
    changes = {
        "confusion_matrix": [[6, 4], [0, 0]],
        "baseline": {"majority class": 0.1},
        **{
            f"{name}_per_class": dict(zip(LABELS, values, strict=True))
            for name, values in {
                "f1": (0.75, 0.0),
                "precision": (1.0, 0.0),
                "recall": (0.6, 0.0),
                "support": (10, 0),
            }.items()
        },
    }
    hits = [int(result.values[0]) for result in results]
    write_classifier(folder, recipe, hits, **changes)
    write_predictions(folder, results)
    sidecar = json.loads((folder / "task.json").read_text())
    sidecar |= {"labels": list(LABELS), "timing": {"reading": 1.0, "training": 9.0}}
    write_manifest(folder, sidecar)
    write_records(folder, texts)
    return folder


def write_records(folder: Path, texts: str) -> None:
    """Write the files of a run that stay on its machine, for steps 10, 20, 30 and 40."""
    log = [{"step": 0, "epoch": 0.0, "seconds": 0.0, "eval_loss": 0.7, "eval_accuracy": 0.5}]
    for step, loss in ((10, 0.6), (20, 0.5), (30, 0.4), (40, 0.3)):
        line = {"step": step, "epoch": step / 40, "seconds": step / 10}
        log.append(line | {"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3 * loss})
        log[-1]["tokens_per_second"] = 1000 + step
    log.append({"step": 40, "epoch": 1.0, "seconds": 5.0, "eval_loss": 0.5, "eval_accuracy": 0.6})
    write_lines(folder / "metrics.jsonl", log)
    shown = {"run": "run", "input": texts, "detail": texts, "reference": texts}
    write_lines(
        folder / "samples.jsonl",
        [
            shown | {"when": "before", "row": "rows.jsonl:1", "output": f"before {texts}"},
            shown | {"when": "after", "row": "rows.jsonl:1", "output": f"after {texts}"},
            shown | {"when": "at the end", "row": "rows.jsonl:6", "output": texts},
        ],
    )
    lengths = {"of": "max_length", "limit": 64, **histogram([3, 5, 8, 70])}
    split = {"counts": {"rows": 4, "rows_cut": 1}, "tokens": 80, "lengths": lengths}
    split["labels"] = {texts: 3, "ham": 1}
    statistics = {
        "run": "run",
        "cautions": [f"caution {texts}"],
        "splits": {"train": split, "eval": split},
        "environment": {"python": "3.11", "git commit of the working folder": None},
    }
    (folder / "statistics.json").write_text(json.dumps(statistics))


def write_lines(file: Path, values: list[dict]) -> None:
    """Write JSON lines."""
    lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    file.write_text("".join(lines), encoding="utf-8")


@dataclass
class Page(HTMLParser):
    """The tags of a page with their attributes, and its text by section."""

    source: str
    tags: list[tuple[str, dict]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    section: str = ""
    skipped: bool = False

    def __post_init__(self):
        super().__init__()
        self.feed(self.source)

    def __hash__(self):
        return id(self)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.handle_data(" " if tag in ("td", "th", "dt", "dd") else "")
        self.skipped = tag in ("style", "title")
        if tag == "section":
            self.section = dict(attrs)["aria-labelledby"].removesuffix("-title")

    def handle_endtag(self, tag):
        self.skipped = False
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if not self.skipped:
            self.texts[self.section] = self.texts.get(self.section, "") + data

    def named(self, tag: str) -> list[dict]:
        """Return the attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, section: str) -> str:
        """Return the text of a section with single spaces, or "" if it is not there."""
        return " ".join(self.texts.get(section, "").split())


def read_page(file: Path) -> Page:
    """Read a page."""
    return Page(file.read_text(encoding="utf-8"))
