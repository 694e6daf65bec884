"""Open a file as text: decompress, detect encodings and binary formats."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUFFER = 2**16  # bytes that are read at once, and by which the format of a file is detected
SAMPLE_LINES, SAMPLE_CHARACTERS = 1000, 2**20  # text by which its form is detected


@dataclass(frozen=True)
class Compression:
    """A compression format: the first bytes and the suffix of its files."""

    name: str
    magic: re.Pattern[bytes]
    suffix: str

    def decompress(self, stream: io.BufferedReader[Any]) -> Any:
        """Return a file object of the decompressed bytes."""
        match self.name:
            case "gzip":
                return gzip.GzipFile(fileobj=stream)
            case "bzip2":
                return bz2.BZ2File(stream)
            case "xz":
                return lzma.LZMAFile(stream)
        import pyarrow

        return pyarrow.CompressedInputStream(stream, self.name)


COMPRESSIONS = (
    Compression("gzip", re.compile(rb"\x1f\x8b\x08"), ".gz"),
    Compression("bzip2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), ".bz2"),
    Compression("xz", re.compile(rb"\xfd7zXZ\0"), ".xz"),
    Compression("zstd", re.compile(rb"\x28\xb5\x2f\xfd"), ".zst"),
)
COLUMNAR = {b"PAR1": "Parquet", b"ARROW1\0\0": "Arrow", b"\xff\xff\xff\xff": "Arrow"}
ENCODINGS = {  # by byte order mark; UTF-32's begins with UTF-16's
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
BINARY = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a media file",
    b"OggS": "a media file",
    b"%PDF-": "a PDF document",
    b"SQLite format 3\0": "an SQLite database",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office document (.xls, .doc)",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x7fELF": "a program",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"FEA1": "a Feather file of version 1",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"GGUF": "a GGUF model",
    b"\x04\x22\x4d\x18": "an LZ4 file",
}
CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))


class TextLines(Iterator[str]):
    """Physical lines with their line ends, read lazily, with a preview.

    Of a `file`, reading can begin again at an offset.
    """

    def __init__(self, lines: Iterable[str], file: io.TextIOWrapper | None = None):
        self.lines = iter(lines)
        self.file = file
        self.ahead: deque[str] = deque()

    def __next__(self) -> str:
        return self.ahead.popleft() if self.ahead else next(self.lines)

    def sample(self) -> list[str]:
        """Return the first lines without consuming them."""
        size = sum(map(len, self.ahead))
        while len(self.ahead) < SAMPLE_LINES and size < SAMPLE_CHARACTERS:
            line = next(self.lines, None)
            if line is None:
                break
            self.ahead.append(line)
            size += len(line)
        return list(self.ahead)

    def first_non_blank(self, count: int) -> list[str]:
        """Return the first non-blank lines without consuming them."""
        filled = [line for line in self.ahead if line.strip()]
        while len(filled) < count and (line := next(self.lines, None)) is not None:
            self.ahead.append(line)
            filled += [line] if line.strip() else []
        return filled[:count]

    def tell(self) -> int | None:
        """Return the offset of the next line for `seek`, or None where it cannot be known."""
        return None if self.file is None or self.ahead else self.file.tell()

    def seek(self, offset: int) -> None:
        """Continue at an offset that `tell` returned."""
        assert self.file is not None
        self.ahead.clear()
        self.file.seek(offset)

    def rest(self) -> str:
        """Consume and return all text."""
        return "".join(self)


def open_bytes(file: Path) -> tuple[io.BufferedReader[Any], Compression | None]:
    """Open a file, and decompress it if necessary.

    Return the compression, detected by the first bytes, or None.
    """
    stream: io.BufferedReader[Any] = io.BufferedReader(io.FileIO(file), BUFFER)
    head = stream.peek(BUFFER)
    for compression in COMPRESSIONS:
        if compression.magic.match(head):
            return io.BufferedReader(compression.decompress(stream), BUFFER), compression
    return stream, None


def columnar_format(head: bytes) -> str | None:
    """Return the columnar format of a file's first bytes, or None."""
    return _format(head, COLUMNAR)


def binary_format(head: bytes) -> str | None:
    """Return the name of a format that holds neither rows nor text, or None."""
    name = _format(head, BINARY)
    if name is not None:
        return name
    if head.startswith(b"PK\x03\x04"):
        if b"xl/" in head:
            return "an Excel workbook; save its sheet as CSV"
        return "a Word document" if b"word/" in head else "a zip archive; unpack it"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if re.match(rb"\x80[\x02-\x05]", head):
        return "a pickle"
    for compression in COMPRESSIONS:
        if compression.magic.match(head):
            return f"a {compression.name} file; unpack it"
    return _unmarked_binary(head)


def _format(head: bytes, formats: dict[bytes, str]) -> str | None:
    """Return the format of a file's first bytes, or None.

    None also for a text that begins like a binary format.
    """
    if not head.startswith(b"%PDF-") and head[:BUFFER].translate(None, CONTROL) == head:
        return None
    return next((name for magic, name in formats.items() if head.startswith(magic)), None)


def _unmarked_binary(head: bytes) -> str | None:
    """Return a name for bytes that are not text, by their control characters, or None."""
    if len(head) < 32 or any(map(head.startswith, ENCODINGS)):
        return None
    num_control = len(head) - len(head.translate(None, CONTROL))
    if num_control <= len(head) / 10:
        return None
    for zeros, others in ((head[1::2], head[::2]), (head[::2], head[1::2])):
        if zeros.count(0) > 0.8 * len(zeros) and others.count(0) < 0.1 * len(others):
            return "UTF-16 without a byte order mark; save it as UTF-8"
    return "a binary file"


def decode(stream: io.BufferedReader[Any], *, seekable: bool) -> tuple[TextLines, str | None]:
    """Return the lines of a text, and its encoding if it is not UTF-8.

    A byte that is not UTF-8 becomes a lone surrogate, so that its line can be named. Reading can
    begin again at a line if the stream is `seekable`.
    """
    head = stream.peek(4)
    name = next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), None)
    encoding, errors = "utf-8-sig", "surrogateescape"
    if name is not None:
        encoding, errors = name.lower(), "surrogatepass"
    text = io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")
    lines = iter(text.readline, "")  # iteration over the file itself would disable `tell`
    return TextLines(lines, text if seekable else None), name
