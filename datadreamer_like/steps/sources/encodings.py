"""Opening files, compressed or not, and finding the encoding of a text that cannot be decoded."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

# UTF-32's mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8"),
)  # fmt: skip
_SAMPLE = 4096

# First bytes of files that are no texts; each has bytes that no text starts with.
_FORMATS = (
    (b"\x1f\x8b", "gzip data", 'add ".gz" to its name'),
    (b"BZh", "bzip2 data", 'add ".bz2" to its name'),
    (b"\xfd7zXZ\0", "xz data", 'add ".xz" to its name'),
    (b"\x28\xb5\x2f\xfd", "Zstandard data", "decompress it first"),
    (b"\x04\x22\x4d\x18", "LZ4 data", "decompress it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"PK\x03\x04", "a zip archive, as .xlsx files are", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file, such as .xls", "save the sheet as CSV"),
    (b"PAR1\x15", "a Parquet file", "read it with ParquetDataSource"),
    (b"ARROW1\0", "an Arrow file", "read it with ArrowDataSource"),
    (b"SQLite format 3\0", "a SQLite database", "read it with SQLDataSource"),
)
_OF_BZIP2 = (b"1AY&SY", b"\x17rE8P\x90")  # with content, or without


def binary(file: Path) -> IO[bytes]:
    """Opens a file as bytes, decompressed."""
    return cast(IO[bytes], _COMPRESSED.get(file.suffix.lower(), open)(file, "rb"))


def plain_suffix(path: Path) -> str:
    """Returns the suffix of a file without that of its compression, in lower case."""
    return (path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path).suffix.lower()


def advice_on_first_bytes(file: Path, encoding: str) -> str:
    """Returns advice if a file's first bytes show another encoding or format, which may decode without an error.

    These are the mark of an encoding or format, and the NUL bytes of UTF-16 and UTF-32 without mark.
    """
    try:
        with binary(file) as stream:
            start = stream.read(_SAMPLE)
    except (OSError, EOFError, ValueError, lzma.LZMAError):
        return ""  # reading it raises the error
    for first, what, advice in _FORMATS:
        if start.startswith(first) and (first != b"BZh" or start[4:10] in _OF_BZIP2):
            return f"It holds {what}: {advice}."
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), None)
    family = encoding.partition("-sig")[0].removesuffix("-le").removesuffix("-be")
    if marked is not None:
        return "" if marked == family else f'It starts with the mark of {marked}: set encoding="{marked}".'
    if family not in ("utf-16", "utf-32") and start.count(0) > 1:
        # Of Latin text, every second byte is NUL.
        even, odd = start[0::2].count(0) / len(start[0::2]), start[1::2].count(0) / len(start[1::2])
        if max(even, odd) > 0.4 and min(even, odd) < 0.1:
            name = "utf-16-le" if odd > even else "utf-16-be"
            return f'Its NUL bytes are those of UTF-16 without a mark: set encoding="{name}".'
    return ""


def advice_on_encoding(file: Path, encoding: str) -> str:
    """Returns advice that leads to the text of a file that cannot be decoded."""
    for name, label in (("utf-8", "UTF-8"), ("cp1252", "Windows-1252"), ("latin-1", "Latin-1")):
        if name != encoding.partition("-sig")[0] and fault(file, name) is None:
            likely = "It is valid" if name == "utf-8" else "It may be"
            return f'{likely} {label}: set encoding="{name}" and check the text.'
    return 'Set the encoding of the file, such as encoding="cp1252".'


def fault(file: Path, encoding: str) -> tuple[int, int, int] | None:
    """Returns line, offset and value of the first byte that cannot be decoded; None if all can."""
    line, done = 1, 0
    decoder = codecs.getincrementaldecoder(encoding)()
    with binary(file) as stream:
        while True:
            chunk = stream.read(2**16)
            done += len(chunk)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].decode(encoding, "replace").count("\n")
                # The error's bytes start with those that the decoder buffered from earlier chunks.
                return line, done - len(error.object) + error.start, error.object[error.start]
            except UnicodeError:  # there is no mark
                return line, 0, chunk[0] if chunk else 0
            if not chunk:
                return None
