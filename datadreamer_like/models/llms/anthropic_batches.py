"""Anthropic's message batches: https://platform.claude.com/docs/en/build-with-claude/batch-processing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from datadreamer_like.errors import UnknownModel

from ..calls.batch_api import BatchAPI, BatchLimits, BatchState, LineResult, Once, RefusedLine
from .generation import Answer, Request, Sampling

logger = logging.getLogger("datadreamer_like")

_STATUS_OF = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "timeout_error": 504,
    "api_error": 500, "overloaded_error": 529,
}  # fmt: skip


def reply_error(said: Any) -> RefusedLine | None:
    """Returns the error that a reply holds, with the status that the API has for its kind; None for an unknown kind."""
    status = _STATUS_OF.get(str(said.get("type"))) if isinstance(said, dict) else None
    return None if status is None else RefusedLine(status, said)


class MessageModel(Protocol):
    """What of `Anthropic` its batches need."""

    @property
    def client(self) -> Any:
        """The SDK's client."""

    def parameters(self, request: Request) -> dict[str, Any]:
        """Returns the parameters of a request for one answer."""

    def answer_from(self, messages: Sequence[Any], sampling: Sampling) -> Answer:
        """Returns the answer whose texts are in messages."""


class AnthropicBatches(BatchAPI):
    """At most 100,000 requests and 256 MB a batch; results are kept for 29 days.

    A batch has no name that it could be found by. One whose id was lost is recognised by its number of requests, and,
    when it has ended, by the custom ids of its results.
    """

    limits = BatchLimits(100_000, 240_000_000)
    body_name = "params"

    def __init__(self, llm: MessageModel) -> None:
        self._llm = llm

    def missing(self, replies: Sequence[Any], sampling: Sampling) -> int:
        """Returns how many answers are missing; each reply is one."""
        return sampling.n - len(replies)

    def bodies(self, request: Request, replies: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns a body for each missing answer."""
        parameters = self._llm.parameters(request)
        body = {**parameters, **parameters.pop("extra_body", {})}
        return [body] * self.missing(replies, request.sampling)

    def line(self, custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Returns a request of a batch."""
        return {"custom_id": custom_id, "params": body}

    def submit(self, file: Path, label: str, rows: int, once: Once) -> str:
        """Sends all lines in one request."""
        batches = self._llm.client.messages.batches

        def find() -> Any:
            logger.info("looking for a batch whose id was lost; those of as many prompts are awaited")
            for batch in batches.list(limit=100):
                counts = batch.request_counts
                total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                if total == rows and batch.archived_at is None and self._is_labelled(batch, label):
                    return batch
            return None

        def send() -> Any:
            with file.open("rb") as lines:
                return batches.create(requests=[json.loads(line) for line in lines])

        return once("batch", find, send)

    def poll(self, batch: str) -> BatchState:
        """Asks for the state; single requests are only counted when all have ended."""
        found = self._llm.client.messages.batches.retrieve(batch)
        counts = found.request_counts
        done = counts.succeeded + counts.errored + counts.canceled + counts.expired
        ended = found.processing_status == "ended"
        return BatchState(str(found.processing_status).replace("_", " "), done, ended, counts.canceled > 0)

    def download(self, batch: str, to: BinaryIO) -> None:
        """Writes the lines of results."""
        batches = self._llm.client.messages.batches
        if batches.retrieve(batch).results_url is None:
            raise UnknownModel(f"The results of the batch {batch} are archived.")
        with batches.with_streaming_response.results(batch) as response:
            for part in response.iter_bytes():
                to.write(part)

    def read(self, line: Any) -> LineResult:
        """Returns the result in a line: a message, an error, or neither if it expired or was cancelled."""
        from anthropic.types import Message

        custom_id, result = line["custom_id"], line["result"]
        if result["type"] == "succeeded":
            return LineResult(custom_id, Message.construct(**result["message"]))
        if result["type"] == "errored":
            said = result["error"].get("error") or result["error"]
            return LineResult(custom_id, error=reply_error(said) or RefusedLine(500, said))
        return LineResult(custom_id)

    def answer(self, replies: Sequence[Any], sampling: Sampling) -> Answer:
        """Returns the answer that messages hold."""
        return self._llm.answer_from(replies, sampling)

    def _is_labelled(self, batch: Any, label: str) -> bool:
        batches = self._llm.client.messages.batches
        pauses = self.pauses()
        while batch.processing_status != "ended":
            time.sleep(next(pauses))
            batch = batches.retrieve(batch.id)
        with batches.with_streaming_response.results(batch.id) as response:
            first = next(response.iter_lines(), "{}")
        return str(json.loads(first).get("custom_id")).endswith(f"-{label}")
