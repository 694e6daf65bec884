"""Answer the rows of a file, a line of JSON for each, so that a stopped command goes on.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.errors import CheckpointError, Problem, RecipeError
from pipelines.readers import read_rows
from pipelines.tasks.base import DataError, Examples

Answers = Callable[[Examples], list[dict[str, Any]]]


@dataclass(frozen=True)
class Done:
    """What stands in OUT: by whom, of how many rows, with which hash, in how many bytes."""

    made_by: dict[str, Any]
    rows: int = 0
    rows_sha256: str = hashlib.sha256().hexdigest()
    num_bytes: int = 0

    def and_(self, examples: Examples, num_bytes: int) -> Done:
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
) -> None:
    """Write an answer for each row of `file` to `out`, or print it, in the order of the rows.

    `answers` gets `chunk_size` rows at once, fewer where they come to `chunk_characters` of text;
    no more are held. What it says of a row follows the row's `id`, if it has one. An `out` that the
    same command has begun is finished.

    Raise DataError for a row that cannot be used, after those before it are written, RecipeError
    for an `out` of other rows or of another `made_by`, and CheckpointError for a full disk.
    """
    sizes = (chunk_size, chunk_characters)
    if out is None:
        for _, lines in answered(chunks(file, *sizes), answers):
            sys.stdout.write("".join(lines))
            sys.stdout.flush()
        return
    with opened(out) as written, progress_bar(file) as advance:
        done = finished(file, out, Done(made_by), chunk_size)
        record(out, done)
        written.truncate(done.num_bytes)
        written.seek(done.num_bytes)
        advance(done.rows)
        for examples, lines in answered(chunks(file, *sizes, skip=done.rows), answers):
            done = keep(written, out, done, examples, lines)
            advance(len(lines))


def keep(written: IO[bytes], out: Path, done: Done, examples: Examples, lines: list[str]) -> Done:
    """Put lines on the disk, then the record that they are there, and return it.

    Raise CheckpointError where the disk does not take them.
    """
    left = "".join(lines).encode()
    try:
        while left:
            left = left[written.write(left) :]
        os.fsync(written.fileno())
        done = done.and_(examples, written.tell())
        record(out, done)
    except OSError as error:
        text = f"{out} cannot be written: {error.strerror}. {done.rows:,} rows are; the same "
        raise CheckpointError(f"{text}command goes on.") from None
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


def answered(given: Iterator[Examples], answers: Answers) -> Iterator[tuple[Examples, list[str]]]:
    """Yield rows with their lines; of a chunk with a row that cannot be used, those before it."""
    for examples in given:
        try:
            found = answers(examples)
        except DataError:
            if len(examples.lines or ()) < 2:
                raise
            yield from answered(halves(examples), answers)
            continue
        lines = []
        for row, answer in zip(examples.rows, found, strict=True):
            known = {"id": row["id"]} if "id" in row else {}
            lines.append(json.dumps(known | answer, ensure_ascii=False) + "\n")
        yield examples, lines


def halves(examples: Examples) -> Iterator[Examples]:
    """Yield the first and the second half."""
    rows, lines = list(examples.rows), examples.lines
    assert lines is not None
    middle = len(rows) // 2
    yield replace(examples, rows=rows[:middle], lines=lines[:middle])
    yield replace(examples, rows=rows[middle:], lines=lines[middle:])


@contextmanager
def opened(out: Path) -> Iterator[IO[bytes]]:
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


def finished(file: Path, out: Path, new: Done, chunk_size: int) -> Done:
    """Return what stands in `out`. Raise RecipeError where the same command did not write it."""
    size = out.stat().st_size
    if not record_of(out).is_file():
        if size:
            text = f"{out} is there, and no {record_of(out).name} that says what wrote it."
            raise RecipeError([Problem("out", f"{text} Give another file, or remove it.")])
        return new
    done = Done(**json.loads(record_of(out).read_text(encoding="utf-8")))
    if not done.rows:
        return new
    remedy = f"Give another file, or remove {out} and {record_of(out)}."
    problems = [
        Problem("out", f"{out} was begun with {name} {value!r}, not {wanted!r}. {remedy}")
        for name, value in done.made_by.items()
        if value != (wanted := new.made_by.get(name))
    ]
    if size < done.num_bytes:
        text = f"{out} has {size:,} bytes of the {done.num_bytes:,} that were written. {remedy}"
        problems.append(Problem("out", text))
    if not problems and rows_again(file, done, chunk_size) != done.rows_sha256:
        text = f"the first {done.rows:,} rows of {file} are not those of {out}. {remedy}"
        problems.append(Problem("out", text))
    if problems:
        raise RecipeError(problems)
    return done


def rows_again(file: Path, done: Done, chunk_size: int) -> str:
    """Return the hash of as many rows as are answered."""
    seen = Done(done.made_by)
    rows = islice(read_rows(file), done.rows)
    while chunk := [row for _, row in islice(rows, chunk_size)]:
        seen = seen.and_(Examples(chunk, str(file)), 0)
    return seen.rows_sha256


def record_of(out: Path) -> Path:
    """Return the file that says what stands in `out`."""
    return out.with_name(f"{out.name}.progress.json")


def record(out: Path, done: Done) -> None:
    """Replace the record of what stands in `out`."""
    unfinished = out.with_name(f".{out.name}.progress.tmp")
    with unfinished.open("w", encoding="utf-8") as text:
        text.write(json.dumps(asdict(done), indent=2, ensure_ascii=False) + "\n")
        text.flush()
        os.fsync(text.fileno())
    os.replace(unfinished, record_of(out))


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
