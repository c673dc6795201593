"""The source for logs of calls that were already paid for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import Unpack

from datadreamer_like.graph.rows import Batch
from datadreamer_like.models.logs.call_log import CallLog
from datadreamer_like.models.logs.logged_call import LoggedCall, text_of

from ..base.columns import batched
from ..base.lazy_rows import LazyRowBatches
from ..base.options import NodeOptions, takes_node_options
from .file_source import Files
from .text_file_source import TextFileSource

_COLUMNS = (
    "prompt", "messages", "answer", "reasoning", "model", "options", "prompt_tokens", "completion_tokens", "cost",
    "started_at", "seconds", "finish_reason", "error", "format", "tool_calls",
)  # fmt: skip


class CallLogDataSource(TextFileSource):
    """Calls of LLMs that were already paid for, one row per call; `CallLog` lists the formats of logs.

    The columns are `prompt` (the last text of the user), `messages` (all, with `role` and `content`), `answer` (the
    first text, None for a failed call), `reasoning`, `model`, `options` (as JSON, those that differ from the default),
    `prompt_tokens`, `completion_tokens`, `cost` (US dollars, None if unknown), `started_at` (ISO 8601, UTC), `seconds`,
    `finish_reason`, `error`, `format` and `tool_calls` (those of the first answer, as JSON). Contents of messages that
    are not texts are JSON, and so are calls of tools in messages. Headers and keys are never read.

    Files are given as in `CSVDataSource`; those of a folder are `.json`, `.jsonl`, `.ndjson` and `.parquet` files.

    Raises:
        DataError: A file does not exist, or no record has a known format. Other records are counted in a warning.
        EmptyDataset: The files are empty.

    Example:
        >>> paid = CallLogDataSource("Paid calls", data_files="paid.jsonl")  # doctest: +SKIP
        >>> labelled = paid.filter(lambda row: row["error"] is None)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 3  # 2: tool_calls; 3: thoughts of calls
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".json", ".ndjson", ".parquet")
    example_text: ClassVar[str] = "".join(
        f'{{"request": {{"model": "m", "messages": [{{"role": "user", "content": "{prompt}"}}], "temperature": 0}},'
        ' "response": {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}],'
        ' "usage": {"prompt_tokens": 3, "completion_tokens": 2}}}\n'
        for prompt in ("one", "two")
    )
    known_options: ClassVar[dict[str, Any]] = {"encoding": "utf-8"}

    @takes_node_options
    def __init__(
        self,
        name: str,
        data_folder: str | os.PathLike[str] | None = None,
        data_files: Files | None = None,
        **options: Unpack[NodeOptions],
    ) -> None:
        super().__init__(name, data_folder, data_files, **options)

    def run(self) -> LazyRowBatches:
        """Reads the log once, up to its first call, for errors, and then the rows."""
        self.register_files()
        self.found_columns(list(_COLUMNS))
        log = CallLog(*self.files)
        log.check()
        return LazyRowBatches(lambda: _batches(log), save=True)


def _batches(log: CallLog) -> Iterator[Batch]:
    for calls in batched(log):
        rows = [_row(call) for call in calls]
        yield {name: [row[name] for row in rows] for name in _COLUMNS}


def _row(call: LoggedCall) -> dict[str, Any]:
    answer = call.answer
    return {
        "prompt": call.prompt,
        "messages": [{"role": each["role"], "content": _content(each)} for each in call.messages],
        "answer": answer.text if answer.error is None else None,
        "reasoning": answer.reasoning[0] if answer.reasoning else None,
        "model": call.model,
        "options": json.dumps(call.options, ensure_ascii=False, sort_keys=True, default=str),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "cost": answer.cost,
        "started_at": call.started_at,
        "seconds": call.seconds,
        "finish_reason": answer.finish_reasons[0] if answer.finish_reasons else None,
        "error": None if answer.error is None else str(answer.error),
        "format": call.format,
        "tool_calls": json.dumps(answer.tool_calls[0], ensure_ascii=False) if answer.tool_calls else None,
    }


def _content(message: dict[str, Any]) -> str:
    """Returns the content of a message as a text, with its calls."""
    calls = message.get("tool_calls")
    said = message.get("content")
    return text_of(said) if not calls else text_of({"content": said, "tool_calls": calls})
