"""Cautions before the first step: what would make the score misleading or the run useless."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence

from pipelines.data.row_facts import facts_of
from pipelines.data.source import DEFAULT_TEST_FRACTION
from pipelines.data.splits import Splits
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.labels import NUM_LABELS_SHOWN, count_labels, short_label
from pipelines.tasks.base import Features, Task

ROWS = {"eval": "evaluation", "test": "test"}
"""What the rows of a split that is scored are called."""
FEW_ROWS = 10  # fewer evaluation rows get a caution
MAX_CUT_FRACTION = 0.5  # of rows that are cut, or whose answers are lost, without a caution


def cautions(
    recipe: Recipe,
    splits: Splits,
    labels: Sequence[str],
    train: Features,
    scored: Mapping[str, Features],
) -> Iterator[str]:
    """Yield cautions about rows, splits, labels, lengths and schedule, one line each.

    `scored` has the features of every split that is scored.
    """
    known = splits.cautions
    yield from cautions_of_rows(recipe.task, splits, labels) if known is None else known
    if recipe.chooses and splits.record["reported"] == "eval" and splits.test is None:
        yield (
            "the score will be of the rows that the choice is made by, and too good: name a "
            "--task.dataset.test-split, or hold rows out by --task.dataset.test-fraction"
        )
    yield from length_cautions(recipe.task, "training", train)
    for split, features in scored.items():
        yield from length_cautions(recipe.task, ROWS[split], features)
    yield from schedule_cautions(recipe, train)
    for split, features in scored.items():
        if features.num_rows < FEW_ROWS:
            yield f"only {features.num_rows} {ROWS[split]} rows: the score says little"


def cautions_of_rows(task: Task, splits: Splits, labels: Sequence[str]) -> Iterator[str]:
    """Yield cautions about rows, splits and labels, which take a look at every row."""
    yield from row_cautions(task, splits)
    yield from split_cautions(task, splits)
    yield from class_cautions(task, splits, labels)
    yield from contradiction_cautions(task, splits)
    yield from task.label_cautions(splits.train)


def row_cautions(task: Task, splits: Splits) -> Iterator[str]:
    """Yield cautions about rows: unusable ones, duplicate ids, inputs in two splits."""
    scored = {ROWS[split]: rows for split, rows in splits.scored.items()}
    for name, examples in ({"training": splits.train} | scored).items():
        if examples.rejected:
            yield (
                f"{len(examples.rejected):,} {name} rows cannot be used and were left out; "
                "they are listed in rejected.jsonl"
            )
        if not examples.streamed:
            ids = [each for each in facts_of(task, examples, "ids") if each is not None]
            if len(set(ids)) < len(ids):
                yield f"{len(ids) - len(set(ids)):,} {name} rows have the id of another row"
    yield from shared_input_cautions(task, splits)


def shared_input_cautions(task: Task, splits: Splits) -> Iterator[str]:
    """Yield a caution for each split with inputs of another one; for a stream's none."""
    for split, other, num_shared, num_rows in shared_inputs(task, splits):
        known = "a training" if other == "train" else f"an {ROWS[other]}"
        yield (
            f"{num_shared:,} of {num_rows:,} {ROWS[split]} rows have the input of "
            f"{known} row: the score is too good"
        )


def shared_inputs(task: Task, splits: Splits) -> Iterator[tuple[str, str, int, int]]:
    """Yield a split, another one whose inputs it shares, how many rows do, and of how many."""
    seen: list[tuple[str, set[Hashable]]] = []
    if not splits.train.streamed:
        seen.append(("train", set(facts_of(task, splits.train, "inputs"))))
    for split, examples in splits.scored.items():
        inputs = facts_of(task, examples, "inputs")
        for other, known in seen:
            num_shared = sum(each in known for each in inputs)
            if num_shared:
                yield split, other, num_shared, len(inputs)
        seen.append((split, set(inputs)))


def contradiction_cautions(task: Task, splits: Splits) -> Iterator[str]:
    """Yield a caution for training rows with one input and different labels."""
    if not task.has_labels:
        return
    inputs = facts_of(task, splits.train, "inputs")
    labels = [frozenset(names) for names in facts_of(task, splits.train, "labels")]
    seen: dict[Hashable, frozenset[str]] = {}
    contradicted = {
        each
        for each, names in zip(inputs, labels, strict=True)
        if seen.setdefault(each, names) != names
    }
    if contradicted:
        num_rows = sum(each in contradicted for each in inputs)
        yield (
            f"{num_rows:,} training rows have the input of another one with other labels: no "
            "model can be right about all of them"
        )


def split_cautions(task: Task, splits: Splits) -> Iterator[str]:
    """Yield cautions about scored rows that differ from what the recipe requests."""
    source = task.dataset
    held_out = [
        splits.record[split] for split in ("train", "eval", "test") if split in splits.record
    ]
    num_rows = sum(each["of"] or 0 for each in held_out if each["split"] == source.train_split)
    for split, named, fraction in (
        ("eval", source.eval_split, source.eval_fraction),
        ("test", source.test_split, source.test_fraction or DEFAULT_TEST_FRACTION),
    ):
        if split not in splits.scored:
            continue
        scored, rows = splits.record[split], ROWS[split]
        if named is not None and scored["split"] != named:
            use = "evaluation" if split == "eval" else "the test"
            yield (
                f"{source.path} is one file, without a split {named!r}: "
                f"{scored['part']} are held out for {use}"
            )
        if scored["shares_inputs"]:
            yield (
                f"{rows} rows have the same {task.grouped_by} as training rows, since no rows can "
                "be held out otherwise: the score does not measure generalisation"
            )
        wanted = fraction * num_rows
        held_out_rows = scored["part"].endswith("of the rows")
        if held_out_rows and abs(scored["of"] - wanted) > max(1, wanted / 2):
            yield (
                f"{scored['of']:,} of {num_rows:,} rows are held out, for {wanted:,.0f} wanted: "
                f"rows with the same {task.grouped_by} stay together, and each label has a row"
            )


def class_cautions(task: Task, splits: Splits, labels: Sequence[str]) -> Iterator[str]:
    """Yield cautions about labels that a model cannot learn, or is not scored on."""
    in_train = count_labels(task, splits.train)
    if not labels or not in_train:
        return
    for number, text in ((0, "no training row"), (1, "only one training row")):
        affected = [name for name in labels if in_train[name] == number]
        if affected:
            yield f"{count_with_names(affected, labels)} {text}"
    for split, examples in splits.scored.items():
        there = count_labels(task, examples)
        absent = [name for name in labels if there[name] == 0 and in_train[name] > 0]
        if absent:
            yield f"{count_with_names(absent, labels)} no {ROWS[split]} row"


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
    """Yield cautions about a batch above the rows, endless warm-up, and a single evaluation."""
    options = recipe.train
    size, num_rows = options.global_batch_size, train.num_rows
    if 0 <= num_rows < size:
        yield (
            f"a global batch of {size:,} (--train.global-batch-size) is more than the "
            f"{num_rows:,} training rows: each step has only these"
        )
    num_steps = options.num_steps(num_rows)
    if options.warmup_steps >= max(num_steps, 1):
        yield (
            f"{options.warmup_steps:g} steps of warm-up (--train.warmup-steps) in a run of "
            f"{num_steps:,}: the learning rate never reaches {options.learning_rate:g}"
        )
    if options.chooses and 0 < num_steps <= (options.eval_steps or 0):
        yield (
            f"an evaluation every {options.eval_steps:,} steps (--train.eval-steps) in a run of "
            f"{num_steps:,}: there is only one, so that nothing is chosen"
        )
