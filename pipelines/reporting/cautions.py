"""Say before the first step what would make a result other than it seems."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipelines.data.splits import Splits
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.labels import NUM_NAMED, count_labels, printable
from pipelines.tasks.base import Features, Task

FEW_ROWS = 10  # evaluation rows below which a score says little
MOST = 0.5  # fraction of the rows that may be cut without a caution


def cautions(
    recipe: Recipe, splits: Splits, labels: Sequence[str], train: Features, held_out: Features
) -> Iterator[str]:
    """Yield what a reader of the score should know, one line each."""
    yield from of_rows(recipe.task, splits)
    yield from of_splits(recipe.task, splits)
    yield from of_labels(recipe.task, splits, labels)
    yield from recipe.task.label_cautions(splits.train)
    for name, features in (("training", train), ("evaluation", held_out)):
        yield from of_lengths(recipe.task, name, features)
    yield from of_schedule(recipe, train)
    if held_out.num_rows < FEW_ROWS:
        yield f"only {held_out.num_rows} evaluation rows: the score says little"


def of_rows(task: Task, splits: Splits) -> Iterator[str]:
    """Yield what is wrong with single rows: unusable ones, equal ids, rows in both splits."""
    for name, examples in (("training", splits.train), ("evaluation", splits.held_out)):
        if examples.rejected:
            yield (
                f"{len(examples.rejected):,} {name} rows cannot be used and were left out; "
                "they are listed in rejected.jsonl"
            )
        if not examples.streamed:
            ids = [str(row["id"]) for row in examples.rows if "id" in row]
            if len(set(ids)) < len(ids):
                yield f"{len(ids) - len(set(ids)):,} {name} rows have the id of another"
    num_shared = count_shared(task, splits)
    if num_shared:
        yield (
            f"{num_shared:,} of {len(list(splits.held_out.rows)):,} evaluation rows have the input "
            "of a training row: the score is too good"
        )


def count_shared(task: Task, splits: Splits) -> int:
    """Return how many evaluation rows have the input of a training row; 0 for a stream."""
    if splits.train.streamed:
        return 0
    inputs = {task.inputs(row) for row in splits.train.rows}
    return sum(task.inputs(row) in inputs for row in splits.held_out.rows)


def of_splits(task: Task, splits: Splits) -> Iterator[str]:
    """Yield where the evaluation rows are not what the recipe seems to ask for."""
    source, scored = task.dataset, splits.record["eval"]
    if source.eval_split is not None and scored["split"] != source.eval_split:
        yield (
            f"{source.path} is one file, without a split {source.eval_split!r}: "
            f"{scored['part']} are held out to score on"
        )
    if scored["shares_inputs"]:
        yield (
            f"evaluation rows have the same {task.grouped_by} as training rows, since no rows can "
            "be held out otherwise: the score does not measure others"
        )
    if scored["part"].endswith("of the rows"):
        num_rows = scored["of"] + splits.record["train"]["of"]
        wanted = source.eval_fraction * num_rows
        if abs(scored["of"] - wanted) > max(1, wanted / 2):
            yield (
                f"{scored['of']:,} of {num_rows:,} rows are held out, for {wanted:,.0f} wanted: "
                f"rows with the same {task.grouped_by} stay together, and each label has a row"
            )


def of_labels(task: Task, splits: Splits, labels: Sequence[str]) -> Iterator[str]:
    """Yield which labels a model cannot learn, or is not scored on."""
    in_train, in_eval = (count_labels(task, each) for each in (splits.train, splits.held_out))
    if not labels or not in_train:
        return
    for number, text in ((0, "no training row"), (1, "only one training row")):
        found = [name for name in labels if in_train[name] == number]
        if found:
            yield f"{named(found, labels)} {text}"
    absent = [name for name in labels if in_eval[name] == 0 and in_train[name] > 0]
    if absent:
        yield f"{named(absent, labels)} no evaluation row"


def named(found: Sequence[str], labels: Sequence[str]) -> str:
    """Return how many labels, of how many, and the first of them."""
    more = "" if len(found) <= NUM_NAMED else ", ..."
    verb = "has" if len(found) == 1 else "have"
    names = ", ".join(map(printable, found[:NUM_NAMED]))
    return f"{len(found)} of {len(labels)} labels ({names}{more}) {verb}"


def of_lengths(task: Task, name: str, features: Features) -> Iterator[str]:
    """Yield that most rows are cut, or that most answers are lost."""
    lengths = sorted(features.lengths)
    limit = getattr(task, task.cut_field) if lengths else 0
    num_cut = sum(length > limit for length in lengths)
    if lengths and num_cut >= MOST * len(lengths):
        median, p95 = (lengths[math.ceil(q * len(lengths)) - 1] for q in (0.5, 0.95))
        yield (
            f"{num_cut:,} of {len(lengths):,} {name} rows are cut at {limit} tokens "
            f"(--task.{task.cut_field.replace('_', '-')}): their median is {median:,}, 95 % have "
            f"at most {p95:,}"
        )
    num_lost = features.report.get("answers_lost", 0)
    if num_lost and num_lost >= MOST * features.num_rows:
        yield (
            f"the answers of {num_lost:,} of {features.num_rows:,} {name} rows are in no window "
            "(--task.max-length)"
        )


def of_schedule(recipe: Recipe, train: Features) -> Iterator[str]:
    """Yield where a step or the run is shorter than the recipe seems to ask for."""
    options = recipe.train
    size, num_rows = options.global_batch_size, train.num_rows
    num_steps = options.max_steps or 0
    if num_rows >= 0:  # not a stream
        if size > num_rows:
            yield (
                f"a global batch of {size:,} (--train.global-batch-size) is more than the "
                f"{num_rows:,} training rows: each step has no more than these"
            )
        steps_per_epoch = math.ceil(num_rows / size)
        num_steps = num_steps or math.ceil(options.num_train_epochs * steps_per_epoch)
    if options.warmup_steps >= max(num_steps, 1):
        yield (
            f"{options.warmup_steps:g} steps of warm-up (--train.warmup-steps) in a run of "
            f"{num_steps:,}: the learning rate never reaches {options.learning_rate:g}"
        )
