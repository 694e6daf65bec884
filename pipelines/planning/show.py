"""Print a plan in tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from pipelines.planning.gpus import Fit
from pipelines.planning.parameters import PARTS
from pipelines.planning.plan import Plan
from pipelines.reporting.labels import NUM_LABELS_SHOWN, short_label
from pipelines.reporting.units import duration

WIDTH = 80
NOT_MEASURED = "Estimates of bfloat16 training from data sheets; nothing was measured on a GPU."


def show(plan: Plan, out: Console) -> None:
    """Print a plan."""
    out.print(f"{plan.name}: {plan.processes} process(es) on {plan.device}", markup=False)
    if plan.finished:
        out.print("The folder holds the finished result of this run; --overwrite trains again.")
    for text in plan.cautions:
        out.print(f"  {text}", style="yellow", markup=False)
    for text in plan.notes:
        out.print(f"  {text}", markup=False)
    for title, content in sections(plan):
        out.print(f"\n{title}", markup=False, style="bold")
        for each in content:
            out.print(each, markup=False)


def sections(plan: Plan) -> Iterator[tuple[str, Iterable[Table | str]]]:
    """Yield title and content of each section."""
    yield "Rows, and the tokens of a row", [splits_table(plan)]
    if any(split.cut_at for split in plan.splits.values()):
        yield "Rows that are cut at a number of tokens (* the recipe's)", [cuts_table(plan)]
    yield "Labels and overlap", lines_of_data(plan)
    yield "Parameters", [parameters_table(plan)]
    yield "Training", [schedule_line(plan)]
    yield machine_title(plan), [machine_table(plan)]
    title = f"GPUs: rows of {plan.longest:,} tokens in a forward pass, and its memory"
    yield title, [fits_table(plan.gpus)]
    yield "GPUs: time of the training", [times_table(plan.gpus), NOT_MEASURED]
    yield "Disk", [disk_line(plan)]
    yield "Rehearsal", rehearsal_lines(plan)


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number_of_column, name in enumerate(columns):
        table.add_column(name, justify="right" if number_of_column else "left")
    for row in rows:
        table.add_row(*row)
    return table


def splits_table(plan: Plan) -> Table:
    """Return the table of rows and lengths."""
    rows = [
        (name, *map(number, (s.rows, s.tokens, s.median, s.percentile_95, s.longest)))
        for name, s in plan.splits.items()
    ]
    return table_of(("split", "rows", "tokens", "median", "95 %", "longest"), rows)


def cuts_table(plan: Plan) -> Table:
    """Return the table of how many rows would be cut at other limits."""
    limits = sorted({limit for split in plan.splits.values() for limit in split.cut_at})
    chosen = {split.limit for split in plan.splits.values()}
    columns = [f"{limit:,}{'*' if limit in chosen else ''}" for limit in limits]
    rows = [
        (name, *(number(split.cut_at.get(limit)) for limit in limits))
        for name, split in plan.splits.items()
        if split.cut_at
    ]
    return table_of(("split", *columns), rows)


def lines_of_data(plan: Plan) -> Iterable[str]:
    """Yield the labels of each split, and the inputs that splits share."""
    for name, split in plan.splits.items():
        total = sum(split.labels.values())
        shown = [
            f"{short_label(label)} {count:,} ({count / total:.0%})"
            for label, count in list(split.labels.items())[:NUM_LABELS_SHOWN]
        ]
        more = len(split.labels) - len(shown)
        if shown:
            yield f"labels, {name}: {', '.join(shown)}{f' and {more} more' if more else ''}"
    if not plan.shared_inputs:
        yield "overlap: no split has an input of another"
    for each in plan.shared_inputs:
        yield f"overlap: {each.rows:,} of {each.of:,} {each.split} rows are in {each.other}, too"


def parameters_table(plan: Plan) -> Table:
    """Return the table of parameters by part."""
    counts = plan.parameters
    rows = [
        (part, number(counts.trainable[part]), number(counts.frozen[part]))
        for part in PARTS
        if counts.trainable[part] or counts.frozen[part]
    ]
    frozen = counts.total - counts.num_trainable
    rows.append(("all", number(counts.num_trainable), number(frozen)))
    return table_of(("part", "trainable", "frozen"), rows)


def schedule_line(plan: Plan) -> str:
    """Return the steps of the training as a line."""
    each = plan.schedule
    return (
        f"{each.steps:,} steps of {each.rows_per_step:,} rows (about "
        f"{each.tokens_per_step:,} tokens), {each.tokens:,} tokens in all; {each.accumulation} "
        f"forward pass(es) of {each.rows_per_pass} rows a step"
    )


def machine_title(plan: Plan) -> str:
    """Return the peak of memory and the time on this machine."""
    title = f"This machine: {gigabytes(plan.peak)} at the peak, of "
    title += f"{gigabytes(plan.available_memory)}; about {duration(plan.seconds.total)}"
    return f"{title}. It does not fit!" if plan.peak > plan.available_memory else title


def machine_table(plan: Plan) -> Table:
    """Return the table of predicted memory and time on this machine."""
    seconds = {"training": plan.seconds.training, "evaluation": plan.seconds.evaluation}
    rows = [
        (phase, gigabytes(peak), duration(seconds[phase]) if phase in seconds else "")
        for phase, peak in plan.peak_memory.items()
    ]
    return table_of(("phase", "memory", "time"), rows)


def fits_table(fits: Sequence[Fit]) -> Table:
    """Return the table of the largest forward pass on each GPU and its memory, by method."""

    def cell(fit: Fit) -> str:
        size = gigabytes(fit.bytes)
        return f"{fit.rows:,}, {size}" if fit.rows else f"needs {size}"

    return by_method(fits, cell)


def times_table(fits: Sequence[Fit]) -> Table:
    """Return the table of the time on each GPU, by method."""
    return by_method(fits, lambda fit: "" if fit.seconds is None else duration(fit.seconds))


def by_method(fits: Sequence[Fit], cell: Callable[[Fit], str]) -> Table:
    """Return a table with a row for each GPU and a column for each method."""
    methods = list(dict.fromkeys(fit.method for fit in fits))
    found = {(fit.gpu, fit.method): cell(fit) for fit in fits}
    gpus = dict.fromkeys(fit.gpu for fit in fits)
    rows = [(gpu, *(found[gpu, method] for method in methods)) for gpu in gpus]
    return table_of(("GPU", *methods), rows)


def disk_line(plan: Plan) -> str:
    """Return what is written and uploaded, as a line."""
    disk = plan.disk
    return (
        f"Checkpoints {megabytes(disk.checkpoints)}, result and upload "
        f"{megabytes(disk.result)}; {megabytes(disk.free)} are free"
    )


def rehearsal_lines(plan: Plan) -> Iterable[str]:
    """Yield what the rehearsal did."""
    each = plan.rehearsal
    primary = each.metrics["primary"]
    yield (
        f"{each.num_layers} layers with random weights trained "
        f"(loss {each.loss:.3f}), saved, loaded and scored ({primary} "
        f"{each.metrics[primary]:.3f})"
    )
    yield f"Planned in {plan.planned_in:.0f} s. Nothing was written to the run's folder."


def number(value: int | None) -> str:
    """Return a count, or nothing where it is not known."""
    return "" if value is None else f"{value:,}"


def gigabytes(size: float) -> str:
    """Return bytes in GB."""
    return f"{size / 1e9:.1f} GB"


def megabytes(size: float) -> str:
    """Return bytes in MB."""
    return f"{size / 1e6:,.0f} MB"
