"""Answer the rows of a file, in JSON lines, CSV or TSV, so that a stopped command can resume.

Beside OUT stands OUT.progress.json, replaced after each chunk: how many rows are answered, how many
bytes of OUT they fill, the hash of these rows and what answers them. The same command cuts OUT back
to those bytes, so that a kill at any moment loses the work of a chunk at most and doubles no row.
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

Answers = Callable[[Examples], list[dict[str, Any]]]


@dataclass(frozen=True)
class WriteProgress:
    """What stands in OUT: by whom, of how many rows, with which hash, in how many bytes."""

    made_by: dict[str, Any]
    rows: int = 0
    rows_sha256: str = hashlib.sha256().hexdigest()
    num_bytes: int = 0

    def and_(self, examples: Examples, num_bytes: int) -> WriteProgress:
        """Return this with further rows, which fill OUT up to `num_bytes`."""
        chained = self.rows_sha256
        for digest in examples.hashes():
            chained = hashlib.sha256(chained.encode() + digest).hexdigest()
        return replace(
            self,
            rows=self.rows + len(list(examples.rows)),
            rows_sha256=chained,
            num_bytes=num_bytes,
        )


def answer_file(
    file: Path,
    answers: Answers,
    out: Path | None,
    made_by: dict[str, Any],
    *,
    chunk_size: int,
    chunk_characters: int = sys.maxsize,
    keep: Sequence[str] | None = None,
) -> None:
    """Write an answer for each row of `file` to `out`, or print it, in the order of the rows.

    `answers` gets `chunk_size` rows at once, fewer where they come to `chunk_characters` of text;
    no more are held. What it says of a row follows the row's `keep` columns, by default its `id`,
    if it has one. An `out` that ends in .csv or .tsv is a table; others, and what is printed, are
    JSON lines. An `out` that the same command has begun is finished.

    Raise DataError for a row that cannot be used, after those before it are written, RecipeError
    for an `out` of other rows or of another `made_by` and for `keep` columns that the file does not
    have or the answers do, and CheckpointError for a full disk.
    """
    sizes = (chunk_size, chunk_characters)
    if out is None:
        printed = JsonLines(ascii_only=not is_utf8(sys.stdout))
        for _, rows in answered(checked(chunks(file, *sizes), keep), answers, keep):
            sys.stdout.write(printed.text(rows))
            sys.stdout.flush()
        return
    made_by = made_by | {"keep": None if keep is None else list(keep)}
    with open_exclusively(out) as written, progress_bar(file) as advance:
        done = load_progress(file, out, WriteProgress(made_by), chunk_size)
        save_progress(out, done)
        written.truncate(done.num_bytes)
        form = format_of(out, done.num_bytes > 0)
        written.seek(done.num_bytes)
        advance(done.rows)
        given = checked(chunks(file, *sizes, skip=done.rows), keep)
        for examples, rows in answered(given, answers, keep):
            done = append(written, out, done, examples, form.text(rows))
            advance(len(rows))


def append(
    written: IO[bytes], out: Path, done: WriteProgress, examples: Examples, text: str
) -> WriteProgress:
    """Put a text on the disk, then the record that it is there, and return the record.

    Raise CheckpointError where the disk does not take them.
    """
    left = text.encode()
    try:
        while left:
            left = left[written.write(left) :]
        os.fsync(written.fileno())
        done = done.and_(examples, written.tell())
        save_progress(out, done)
    except OSError as error:
        message = f"{out} cannot be written: {error.strerror}. {done.rows:,} rows are; run the "
        raise CheckpointError(f"{message}same command again to resume.") from None
    return done


def chunks(
    file: Path, chunk_size: int, chunk_characters: int, *, skip: int = 0
) -> Iterator[Examples]:
    """Yield the rows after the first `skip`; those before a line that cannot be read first."""
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


def answered(
    given: Iterator[Examples], answers: Answers, keep: Sequence[str] | None
) -> Iterator[tuple[Examples, list[dict[str, Any]]]]:
    """Yield rows with their answers; of a chunk with a row that cannot be used, those before it."""
    for examples in given:
        try:
            found = answers(examples)
        except DataError:
            if len(examples.lines or ()) < 2:
                raise
            yield from answered(parts(examples, len(examples.lines or ()) // 2), answers, keep)
            continue
        pairs = list(zip(examples.rows, found, strict=True))
        if keep:
            check_clash(keep, pairs[0][1])
        yield examples, [kept(row, keep) | answer for row, answer in pairs]


def kept(row: dict[str, Any], keep: Sequence[str] | None) -> dict[str, Any]:
    """Return the columns of a row that stay; None where the row lacks one."""
    if keep is None:
        return {"id": row["id"]} if "id" in row else {}
    return {name: row.get(name) for name in keep}


def checked(given: Iterator[Examples], keep: Sequence[str] | None) -> Iterator[Examples]:
    """Yield the chunks; with `keep`, the first row alone, so that a clash is known after one row.

    Raise RecipeError for a column that no row of the first chunk has.
    """
    first = next(given, None) if keep else None
    if first is not None:
        columns = list(dict.fromkeys(name for row in first.rows for name in row))
        problems = [
            Problem("keep", f"{name!r} is not a column. Columns: {', '.join(columns)}.")
            for name in keep or ()
            if name not in columns
        ]
        if problems:
            raise RecipeError(problems)
        yield from parts(first, 1)
    yield from given


def check_clash(keep: Sequence[str], answer: dict[str, Any]) -> None:
    """Raise RecipeError for columns that an answer has too."""
    names = {*answer, *flattened(answer)}
    problems = [
        Problem("keep", f"{name!r} is also what an answer has: {', '.join(answer)}. Rename it.")
        for name in keep
        if name in names
    ]
    if problems:
        raise RecipeError(problems)


def parts(examples: Examples, size: int) -> Iterator[Examples]:
    """Yield the first `size` rows, and the others if there are any."""
    rows, lines = list(examples.rows), examples.lines
    assert lines is not None
    yield replace(examples, rows=rows[:size], lines=lines[:size])
    if rows[size:]:
        yield replace(examples, rows=rows[size:], lines=lines[size:])


@contextmanager
def open_exclusively(out: Path) -> Iterator[IO[bytes]]:
    """Open `out`, without emptying it, for this process alone."""
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
    """Return what stands in `out`. Raise RecipeError where the same command did not write it."""
    size = out.stat().st_size
    if not progress_file(out).is_file():
        if size:
            text = f"{out} is there, and no {progress_file(out).name} that says what wrote it."
            raise RecipeError([Problem("out", f"{text} Give another file, or remove it.")])
        return new
    done = WriteProgress(**json.loads(progress_file(out).read_text(encoding="utf-8")))
    if not done.rows:
        return new
    remedy = f"Give another file, or remove {out} and {progress_file(out)}."
    problems = [
        Problem("out", f"{out} was begun with {name} {value!r}, not {wanted!r}. {remedy}")
        for name in (done.made_by | new.made_by)
        if (value := done.made_by.get(name)) != (wanted := new.made_by.get(name))
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
    """Return the hash of as many rows as are answered."""
    seen = WriteProgress(done.made_by)
    rows = islice(read_rows(file), done.rows)
    while chunk := [row for _, row in islice(rows, chunk_size)]:
        seen = seen.and_(Examples(chunk, str(file)), 0)
    return seen.rows_sha256


def progress_file(out: Path) -> Path:
    """Return the file that says what stands in `out`."""
    return out.with_name(f"{out.name}.progress.json")


def save_progress(out: Path, done: WriteProgress) -> None:
    """Replace the record of what stands in `out`."""
    unfinished = out.with_name(f".{out.name}.progress.tmp")
    with unfinished.open("w", encoding="utf-8") as text:
        text.write(json.dumps(asdict(done), indent=2, ensure_ascii=False) + "\n")
        text.flush()
        os.fsync(text.fileno())
    os.replace(unfinished, progress_file(out))


@contextmanager
def progress_bar(file: Path) -> Iterator[Callable[[int], None]]:
    """Show rows done on a terminal's standard error; of how many, where lines are rows."""
    console = Console(stderr=True)
    total = None
    if console.is_terminal and file.suffix == ".jsonl" and file.is_file():
        with file.open("rb") as content:
            total = sum(1 for line in content if line.strip())
    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda count: bar.advance(task, count)
