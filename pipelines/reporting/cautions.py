"""Cautions before the first step: what would make the score misleading or the run useless."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipelines.data.splits import Splits
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.labels import NUM_LABELS_SHOWN, count_labels, short_label
from pipelines.tasks.base import Features, Task

FEW_ROWS = 10  # fewer evaluation rows get a caution
MAX_CUT_FRACTION = 0.5  # of rows that are cut, or whose answers are lost, without a caution


def cautions(
    recipe: Recipe, splits: Splits, labels: Sequence[str], train: Features, held_out: Features
) -> Iterator[str]:
    """Yield cautions about rows, splits, labels, lengths and schedule, one line each."""
    yield from row_cautions(recipe.task, splits)
    yield from split_cautions(recipe.task, splits)
    yield from class_cautions(recipe.task, splits, labels)
    yield from recipe.task.label_cautions(splits.train)
    for name, features in (("training", train), ("evaluation", held_out)):
        yield from length_cautions(recipe.task, name, features)
    yield from schedule_cautions(recipe, train)
    if held_out.num_rows < FEW_ROWS:
        yield f"only {held_out.num_rows} evaluation rows: the score says little"


def row_cautions(task: Task, splits: Splits) -> Iterator[str]:
    """Yield cautions about rows: unusable ones, duplicate ids, inputs in both splits."""
    for name, examples in (("training", splits.train), ("evaluation", splits.held_out)):
        if examples.rejected:
            yield (
                f"{len(examples.rejected):,} {name} rows cannot be used and were left out; "
                "they are listed in rejected.jsonl"
            )
        if not examples.streamed:
            ids = [str(row["id"]) for row in examples.rows if "id" in row]
            if len(set(ids)) < len(ids):
                yield f"{len(ids) - len(set(ids)):,} {name} rows have the id of another row"
    num_shared = count_shared_inputs(task, splits)
    if num_shared:
        yield (
            f"{num_shared:,} of {len(list(splits.held_out.rows)):,} evaluation rows have the input "
            "of a training row: the score is too good"
        )


def count_shared_inputs(task: Task, splits: Splits) -> int:
    """Return the number of evaluation rows with the input of a training row; 0 for a stream."""
    if splits.train.streamed:
        return 0
    inputs = {task.inputs(row) for row in splits.train.rows}
    return sum(task.inputs(row) in inputs for row in splits.held_out.rows)


def split_cautions(task: Task, splits: Splits) -> Iterator[str]:
    """Yield cautions about evaluation rows that differ from what the recipe requests."""
    source, scored = task.dataset, splits.record["eval"]
    if source.eval_split is not None and scored["split"] != source.eval_split:
        yield (
            f"{source.path} is one file, without a split {source.eval_split!r}: "
            f"{scored['part']} are held out for evaluation"
        )
    if scored["shares_inputs"]:
        yield (
            f"evaluation rows have the same {task.grouped_by} as training rows, since no rows can "
            "be held out otherwise: the score does not measure generalisation"
        )
    if scored["part"].endswith("of the rows"):
        num_rows = scored["of"] + splits.record["train"]["of"]
        wanted = source.eval_fraction * num_rows
        if abs(scored["of"] - wanted) > max(1, wanted / 2):
            yield (
                f"{scored['of']:,} of {num_rows:,} rows are held out, for {wanted:,.0f} wanted: "
                f"rows with the same {task.grouped_by} stay together, and each label has a row"
            )


def class_cautions(task: Task, splits: Splits, labels: Sequence[str]) -> Iterator[str]:
    """Yield cautions about labels that a model cannot learn, or is not scored on."""
    in_train, in_eval = (count_labels(task, each) for each in (splits.train, splits.held_out))
    if not labels or not in_train:
        return
    for number, text in ((0, "no training row"), (1, "only one training row")):
        affected = [name for name in labels if in_train[name] == number]
        if affected:
            yield f"{count_with_names(affected, labels)} {text}"
    absent = [name for name in labels if in_eval[name] == 0 and in_train[name] > 0]
    if absent:
        yield f"{count_with_names(absent, labels)} no evaluation row"


def count_with_names(some: Sequence[str], labels: Sequence[str]) -> str:
    """Return the number of some labels, of how many, with the names of the first."""
    more = "" if len(some) <= NUM_LABELS_SHOWN else ", ..."
    verb = "has" if len(some) == 1 else "have"
    names = ", ".join(map(short_label, some[:NUM_LABELS_SHOWN]))
    return f"{len(some)} of {len(labels)} labels ({names}{more}) {verb}"


def length_cautions(task: Task, name: str, features: Features) -> Iterator[str]:
    """Yield a caution where most rows are cut, and one where most answers are lost."""
    lengths = sorted(features.lengths)
    limit = getattr(task, task.cut_field) if lengths else 0
    num_cut = sum(length > limit for length in lengths)
    if lengths and num_cut >= MAX_CUT_FRACTION * len(lengths):
        median, p95 = (lengths[math.ceil(q * len(lengths)) - 1] for q in (0.5, 0.95))
        yield (
            f"{num_cut:,} of {len(lengths):,} {name} rows are cut at {limit} tokens "
            f"(--task.{task.cut_field.replace('_', '-')}): their median is {median:,}, 95 % have "
            f"at most {p95:,}"
        )
    num_lost = features.report.get("answers_lost", 0)
    if num_lost and num_lost >= MAX_CUT_FRACTION * features.num_rows:
        yield (
            f"the answers of {num_lost:,} of {features.num_rows:,} {name} rows are in no window "
            "(--task.max-length)"
        )


def schedule_cautions(recipe: Recipe, train: Features) -> Iterator[str]:
    """Yield cautions about a batch larger than the training rows, and warm-up without an end."""
    options = recipe.train
    size, num_rows = options.global_batch_size, train.num_rows
    num_steps = options.max_steps or 0
    if num_rows >= 0:  # not a stream
        if size > num_rows:
            yield (
                f"a global batch of {size:,} (--train.global-batch-size) is more than the "
                f"{num_rows:,} training rows: each step has only these"
            )
        steps_per_epoch = math.ceil(num_rows / size)
        num_steps = num_steps or math.ceil(options.num_train_epochs * steps_per_epoch)
    if options.warmup_steps >= max(num_steps, 1):
        yield (
            f"{options.warmup_steps:g} steps of warm-up (--train.warmup-steps) in a run of "
            f"{num_steps:,}: the learning rate never reaches {options.learning_rate:g}"
        )
