"""Logs of calls in any known format, as one stream of `LoggedCall`s."""

from __future__ import annotations

import glob
import gzip
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset, MissingFile
from datadreamer_like.storage.answers import AnswerStore

from .formats import calls_in, is_batch_request
from .logged_call import LoggedCall

logger = logging.getLogger("datadreamer_like")

_CHUNK = 2**16
_KNOWN = (
    "requests with their responses (OpenAI, Anthropic), the input and output files of their batches, LiteLLM's "
    "standard logging payload, Langfuse's observations, OpenTelemetry's spans, and rows of distilabel"
)
_SQLITE = b"SQLite format 3\0"


class CallLog:
    """Calls that were already paid for, in the logs of other tools.

    Formats are found by looking at each record: requests with their responses as JSON lines (`{"request": {...},
    "response": {...}}`, of OpenAI's chat completions and responses and of Anthropic's messages), the input and output
    files of batches together, LiteLLM's standard logging payload, exports of Langfuse's observations, OpenTelemetry's
    spans (OTLP in JSON), and distilabel's rows. Records of other formats are counted, and named in a warning.

    Files are JSON lines, JSON arrays or Parquet, also compressed with gzip. They are read as a stream, so memory stays
    flat. Headers and fields that are named like keys are never read.

    Args:
        *files: Paths, folders or patterns such as "logs/*.jsonl".

    Raises:
        MissingFile: A file does not exist.
        EmptyDataset: The files are empty.
        DataError: They hold no call in a known format.

    Example:
        >>> log = CallLog("paid.jsonl")  # doctest: +SKIP
        >>> llm = OpenAI("gpt-5-mini").reuse(log)  # doctest: +SKIP
        >>> [call.prompt for call in log][:2]  # doctest: +SKIP
        ['Name a colour.', 'Name an animal.']

    Attributes:
        files: The files, those with a batch's requests first.
        found: After a pass, the number of calls in each format.
        skipped: After a pass, the number of records that are no call, by reason.
    """

    def __init__(self, *files: str | os.PathLike[str]) -> None:
        if not files:
            raise DefinitionError('CallLog needs at least one file: CallLog("calls.jsonl").')
        self.files = sorted(_found(files), key=lambda file: not _begins_with_requests(file))
        self.found: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[LoggedCall]:
        """Yields the calls, in the files' order; at the end, the log says what was left out.

        Raises:
            DataError: A file cannot be read, or none has a call.
        """
        found: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        first: dict[str, str] = {}
        records = 0

        def skip(reason: str, where: str) -> None:
            skipped[reason] += 1
            first.setdefault(reason, where)

        with AnswerStore("") as requests:
            for file in self.files:
                for where, record in _records(file, skip):
                    records += 1
                    known = calls_in(record, requests) if isinstance(record, dict) else None
                    if known is None:
                        skip(f"of no known format ({_shown(record)})", where)
                        continue
                    try:
                        for call in known[1]:
                            if isinstance(call, str):
                                skip(call, where)
                            else:
                                found[call.format] += 1
                                yield call
                    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
                        skip(f"{known[0]} that cannot be read ({type(error).__name__}: {error})"[:200], where)
        self.found, self.skipped = found, skipped
        if not found:
            self._raise_nothing(records, first)
        if skipped:
            logger.warning(
                "%s: %s calls were read; left out were %s",
                self._name(),
                f"{found.total():,}",
                "; ".join(f"{count:,} {reason}, first in {first[reason]}" for reason, count in _few(skipped)),
            )

    def check(self) -> None:
        """Raises the error of a log without calls; reads until the first one."""
        for _ in self:
            return

    def _raise_nothing(self, records: int, first: dict[str, str]) -> None:
        if not records and not first:
            raise EmptyDataset(f"{self._name()} is empty: there is no call in it.")
        reasons = "; ".join(f"{where}: {reason}" for reason, where in list(first.items())[:3])
        raise DataError(f"{self._name()} has no call in a known format ({reasons}). Known are {_KNOWN}.")

    def _name(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def _few(counts: Counter[str]) -> list[tuple[str, int]]:
    most = counts.most_common(5)
    left = counts.total() - sum(count for _, count in most)
    return [*most, *([("of other kinds", left)] if left and most else [])][:5]


def _shown(record: object) -> str:
    if isinstance(record, dict):
        return f"keys {', '.join(map(str, list(record)[:6]))}"[:120] if record else "no keys"
    return f"a JSON {type(record).__name__}"


# Files


def _found(files: tuple[str | os.PathLike[str], ...]) -> list[Path]:
    found: list[Path] = []
    for each in files:
        path = Path(os.path.expanduser(each))
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
            if not inside:
                raise MissingFile(f"The folder {path} has no file.")
            found += inside
        elif path.exists():
            found.append(path)
        elif glob.has_magic(str(each)) and (matching := sorted(glob.glob(str(path), recursive=True))):
            found += map(Path, matching)
        else:
            raise MissingFile(f"There is no file {path} with logged calls. Check the path.")
    return list(dict.fromkeys(found))


def _opened(file: Path) -> IO[str]:
    try:
        with file.open("rb") as raw:
            start = raw.read(len(_SQLITE))
        if start == _SQLITE:
            raise DataError(
                f"{file} is an SQLite file. A cache of DataDreamer's has hashes of its prompts, not the prompts, so "
                "its answers cannot be matched; load the dataset that the step saved with HFDatasetDataSource instead."
            )
        if start[:2] == b"\x1f\x8b":
            return gzip.open(file, "rt", encoding="utf-8-sig", errors="replace")
        return file.open(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error


def _begins_with_requests(file: Path) -> bool:
    if file.suffix == ".parquet":
        return False
    with _opened(file) as stream:
        try:
            return is_batch_request(json.loads(stream.readline()))
        except (ValueError, OSError, EOFError, zlib.error, RecursionError):
            return False


def _records(file: Path, skip: Any) -> Iterator[tuple[str, Any]]:
    """Yields the records of a file, each with its place; other texts than JSON are skipped."""
    if file.suffix == ".parquet":
        yield from _rows(file)
        return
    with _opened(file) as stream:
        try:
            start = stream.read(1)
            while start.isspace():
                start = stream.read(1)
            if start == "[":
                yield from _array(file, stream, skip)
                return
            line = start + stream.readline()
            if start == "{" and line.strip() == "{":  # one object on several lines
                yield str(file), json.loads(line + stream.read())
                return
            number = 1
            while line:
                if line.strip():
                    where = f"{file}, line {number}"
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):
                        cut = not line.endswith("\n") and line.startswith("{")
                        skip("cut off (the last line)" if cut else "not JSON", where)
                    else:
                        yield where, record
                line, number = stream.readline(), number + 1
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {error.lineno} is not JSON: {error.msg}.") from error
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} is damaged ({error}). Copy it again.") from error


def _array(file: Path, stream: IO[str], skip: Any) -> Iterator[tuple[str, Any]]:
    """Yields the elements of a JSON array; only one element is in memory."""
    decoder = json.JSONDecoder()
    text, number = "", 0
    while True:
        text = text.lstrip(" \t\r\n,")
        if text.startswith("]"):
            return
        try:
            record, end = decoder.raw_decode(text)
        except ValueError:
            more = stream.read(max(_CHUNK, len(text)))
            if not more:
                if text or not number:
                    skip("cut off (the end of the array)", f"{file}, element {number}")
                return
            text += more
            continue
        yield f"{file}, element {number}", record
        text, number = text[end:], number + 1


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            number = 0
            for batch in parquet.iter_batches(1_000):
                for row in batch.to_pylist():
                    yield f"{file}, row {number}", row
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not a Parquet file: {error}.") from error
