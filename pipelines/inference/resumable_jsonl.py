"""Compute something for each row of a file, and resume where a stopped command left off.

The results are JSON lines, or a CSV or TSV table. OUT.progress.json is next to OUT and is replaced
after each chunk: how many rows are done, how many bytes of OUT they fill, the hash of these rows
and what computes the results. The same command truncates OUT to those bytes and resumes: a kill at
any moment loses the work of one chunk at most and duplicates no row.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.data.readers import read_rows
from pipelines.data.rows import Examples
from pipelines.errors import CheckpointError, DataError, Problem, RecipeError
from pipelines.inference.output_formats import JsonLines, flattened, format_of, is_utf8

Compute = Callable[[Examples], list[dict[str, Any]]]
"""Returns one result for each row."""


@dataclass(frozen=True)
class WriteProgress:
    """What OUT holds: results of so many rows, with this hash, in so many bytes.

    `settings` is what computes the results: the command, the model and the options.
    """

    settings: dict[str, Any]
    rows: int = 0
    rows_sha256: str = hashlib.sha256().hexdigest()
    num_bytes: int = 0

    def extended(self, examples: Examples, num_bytes: int) -> WriteProgress:
        """Return this with further rows, whose results fill OUT up to `num_bytes`."""
        chained = self.rows_sha256
        for digest in examples.hashes():
            chained = hashlib.sha256(chained.encode() + digest).hexdigest()
        return replace(
            self,
            rows=self.rows + len(list(examples.rows)),
            rows_sha256=chained,
            num_bytes=num_bytes,
        )


def map_file(
    file: Path,
    compute: Compute,
    out: Path | None,
    settings: dict[str, Any],
    *,
    chunk_size: int,
    chunk_characters: int = sys.maxsize,
    keep: Sequence[str] | None = None,
) -> None:
    """Write the result of each row of `file` to `out`, or print it, in the order of the rows.

    `compute` gets `chunk_size` rows at once, fewer if they have `chunk_characters` of text; no more
    are in memory. A row's result comes after its `keep` columns, by default its `id`, if it has
    one. An `out` that ends in .csv or .tsv is a table; others, and what is printed, are JSON lines.
    An `out` that was begun with the same `settings` is finished.

    Raise DataError for a row that cannot be used, after those before it are written, RecipeError
    for an `out` of other rows or `settings` and for `keep` columns that the file does not have or
    the results do, and CheckpointError for a full disk.
    """
    sizes = (chunk_size, chunk_characters)
    if out is None:
        printed = JsonLines(ascii_only=not is_utf8(sys.stdout))
        for _, rows in map_chunks(first_alone(read_chunks(file, *sizes), keep), compute, keep):
            sys.stdout.write(printed.text(rows))
            sys.stdout.flush()
        return
    settings = settings | {"keep": None if keep is None else list(keep)}
    with open_locked(out) as written, progress_bar(file) as advance:
        done = load_progress(file, out, WriteProgress(settings), chunk_size)
        save_progress(out, done)
        written.truncate(done.num_bytes)
        form = format_of(out, done.num_bytes > 0)
        written.seek(done.num_bytes)
        advance(done.rows)
        chunks = first_alone(read_chunks(file, *sizes, skip=done.rows), keep)
        for examples, rows in map_chunks(chunks, compute, keep):
            done = append(written, out, done, examples, form.text(rows))
            advance(len(rows))


def append(
    written: IO[bytes], out: Path, done: WriteProgress, examples: Examples, text: str
) -> WriteProgress:
    """Write a text to the disk, then the progress that includes it, and return the progress.

    Raise CheckpointError if the disk does not take them.
    """
    remaining = text.encode()
    try:
        while remaining:
            remaining = remaining[written.write(remaining) :]
        os.fsync(written.fileno())
        done = done.extended(examples, written.tell())
        save_progress(out, done)
    except OSError as error:
        message = f"{out} cannot be written: {error.strerror}. It has {done.rows:,} rows; run the "
        raise CheckpointError(f"{message}same command again to resume.") from None
    return done


def read_chunks(
    file: Path, chunk_size: int, chunk_characters: int, *, skip: int = 0
) -> Iterator[Examples]:
    """Yield the rows after the first `skip` in chunks.

    Raise DataError for an unreadable line, after the rows before it, and for a file without rows.
    """
    rows = islice(read_rows(file), skip, None)
    broken: DataError | None = None
    empty = not skip
    while broken is None:
        chunk: list[tuple[int, dict[str, Any]]] = []
        characters = 0
        try:
            for numbered in islice(rows, chunk_size):
                chunk.append(numbered)
                characters += sum(len(str(value)) for value in numbered[1].values())
                if characters >= chunk_characters:
                    break
        except DataError as error:
            broken = error
        if not chunk:
            break
        empty = False
        yield Examples([row for _, row in chunk], str(file), [line for line, _ in chunk])
    if broken is not None:
        raise broken
    if empty:
        raise DataError(f"{file}: no rows.")


def map_chunks(
    chunks: Iterator[Examples], compute: Compute, keep: Sequence[str] | None
) -> Iterator[tuple[Examples, list[dict[str, Any]]]]:
    """Yield chunks with their results; of a chunk with an unusable row, the rows before it."""
    for examples in chunks:
        try:
            results = compute(examples)
        except DataError:
            num_rows = len(examples.lines or ())
            if num_rows < 2:
                raise
            yield from map_chunks(split_at(examples, num_rows // 2), compute, keep)
            continue
        pairs = list(zip(examples.rows, results, strict=True))
        if keep:
            check_clash(keep, pairs[0][1])
        yield examples, [select_columns(row, keep) | result for row, result in pairs]


def select_columns(row: dict[str, Any], keep: Sequence[str] | None) -> dict[str, Any]:
    """Return the columns of a row to write before its result; None where the row lacks one."""
    if keep is None:
        return {"id": row["id"]} if "id" in row else {}
    return {name: row.get(name) for name in keep}


def first_alone(chunks: Iterator[Examples], keep: Sequence[str] | None) -> Iterator[Examples]:
    """Yield the chunks; with `keep`, the first row alone, so that a clash shows after one row.

    Raise RecipeError for a column that no row of the first chunk has.
    """
    first = next(chunks, None) if keep else None
    if first is not None:
        columns = list(dict.fromkeys(name for row in first.rows for name in row))
        problems = [
            Problem("keep", f"{name!r} is not a column. Columns: {', '.join(columns)}.")
            for name in keep or ()
            if name not in columns
        ]
        if problems:
            raise RecipeError(problems)
        yield from split_at(first, 1)
    yield from chunks


def check_clash(keep: Sequence[str], result: dict[str, Any]) -> None:
    """Raise RecipeError for columns that a result has too."""
    names = {*result, *flattened(result)}
    problems = [
        Problem(
            "keep", f"{name!r} is also a column of the results: {', '.join(result)}. Rename it."
        )
        for name in keep
        if name in names
    ]
    if problems:
        raise RecipeError(problems)


def split_at(examples: Examples, index: int) -> Iterator[Examples]:
    """Yield the rows before an index, then the others if there are any."""
    rows, lines = list(examples.rows), examples.lines
    assert lines is not None
    yield replace(examples, rows=rows[:index], lines=lines[:index])
    if rows[index:]:
        yield replace(examples, rows=rows[index:], lines=lines[index:])


@contextmanager
def open_locked(out: Path) -> Iterator[IO[bytes]]:
    """Open `out`, without emptying it, and lock it for this process.

    Raise RecipeError for a file that cannot be opened, or that another process has locked.
    """
    try:
        written = out.open("r+b" if out.exists() else "x+b", buffering=0)
    except OSError as error:
        raise RecipeError([Problem("out", f"{out}: {error.strerror}.")]) from None
    with written:
        try:
            fcntl.flock(written, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"another process writes {out}. Wait for it, or give another file."
            raise RecipeError([Problem("out", text)]) from None
        yield written


def load_progress(file: Path, out: Path, new: WriteProgress, chunk_size: int) -> WriteProgress:
    """Return what `out` holds. Raise RecipeError if another command wrote it, or of other rows."""
    size = out.stat().st_size
    if not progress_file(out).is_file():
        if size:
            text = f"{out} exists without {progress_file(out).name}, which records what wrote it."
            raise RecipeError([Problem("out", f"{text} Give another file, or remove it.")])
        return new
    done = WriteProgress(**json.loads(progress_file(out).read_text(encoding="utf-8")))
    if not done.rows:
        return new
    remedy = f"Give another file, or remove {out} and {progress_file(out)}."
    problems = [
        Problem("out", f"{out} was begun with {name} {value!r}, not {wanted!r}. {remedy}")
        for name in (done.settings | new.settings)
        if (value := done.settings.get(name)) != (wanted := new.settings.get(name))
    ]
    if size < done.num_bytes:
        text = f"{out} has {size:,} bytes of the {done.num_bytes:,} that were written. {remedy}"
        problems.append(Problem("out", text))
    if not problems and rehash_rows(file, done, chunk_size) != done.rows_sha256:
        text = f"the first {done.rows:,} rows of {file} are not those of {out}. {remedy}"
        problems.append(Problem("out", text))
    if problems:
        raise RecipeError(problems)
    return done


def rehash_rows(file: Path, done: WriteProgress, chunk_size: int) -> str:
    """Return the hash of as many rows of `file` as are done."""
    seen = WriteProgress(done.settings)
    rows = islice(read_rows(file), done.rows)
    while chunk := [row for _, row in islice(rows, chunk_size)]:
        seen = seen.extended(Examples(chunk, str(file)), 0)
    return seen.rows_sha256


def progress_file(out: Path) -> Path:
    """Return the file that records what `out` holds."""
    return out.with_name(f"{out.name}.progress.json")


def save_progress(out: Path, done: WriteProgress) -> None:
    """Replace the record of what `out` holds."""
    unfinished = out.with_name(f".{out.name}.progress.tmp")
    with unfinished.open("w", encoding="utf-8") as text:
        text.write(json.dumps(asdict(done), indent=2, ensure_ascii=False) + "\n")
        text.flush()
        os.fsync(text.fileno())
    unfinished.replace(progress_file(out))


@contextmanager
def progress_bar(file: Path) -> Iterator[Callable[[int], None]]:
    """Show the rows done on a terminal's standard error, and of how many if lines are rows."""
    console = Console(stderr=True)
    total = None
    if console.is_terminal and file.suffix == ".jsonl" and file.is_file():
        with file.open("rb") as content:
            total = sum(1 for line in content if line.strip())
    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda count: bar.advance(task, count)
