"""Batches of OpenAI and of Mistral: a file of requests is uploaded, and a job answers them in another file.

https://platform.openai.com/docs/guides/batch, https://docs.mistral.ai/capabilities/batch.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

from datadreamer_like.errors import UnknownModel

from ..calls.batch_api import BatchAPI, BatchLimits, BatchState, LineResult, Once, RefusedLine
from .generation import Answer, Request, Sampling
from .provider_errors import ErrorInAnswer
from .wire import read_answer

_LABEL = "datadreamer_like"
_PAGE = 100
# Of lines that were not processed.
_UNPROCESSED = {"batch_expired", "batch_cancelled"}


class ChatModel(Protocol):
    """What of an `OpenAICompatible` its batches need."""

    model_name: str

    @property
    def client(self) -> Any:
        """The SDK's client."""

    @property
    def one_by_one(self) -> bool:
        """Whether each of `n` answers takes a request."""

    def parameters(self, request: Request, n: int, seed: int | None) -> dict[str, Any]:
        """Returns the parameters of a request for `n` answers."""

    def answer_from(self, completions: Sequence[Any], sampling: Sampling) -> Answer:
        """Returns the answer whose texts are in completions."""


class FileBatches(BatchAPI):
    """What both have in common: the files, and the lines of requests and results.

    An upload whose id was lost is found by its name, which is unique, and a job by a label in its metadata.
    """

    endpoint = "/v1/chat/completions"

    def __init__(self, llm: ChatModel) -> None:
        self._llm = llm

    def reply(self, body: Any) -> Any:
        """Returns the completion in the body of a response; None if there is none."""
        return read_answer(json.dumps(body)) if isinstance(body, dict) and body.get("choices") else None

    @abstractmethod
    def files(self) -> Iterator[Any]:
        """Yields the uploaded files with the purpose "batch"."""

    @abstractmethod
    def jobs(self) -> Iterator[Any]:
        """Yields the jobs, with `id` and `metadata`."""

    @abstractmethod
    def create(self, file_id: str, label: str) -> Any:
        """Creates the job of an uploaded file, and returns it."""

    @abstractmethod
    def result_files(self, batch: str) -> list[str | None]:
        """Returns the ids of the files with answers and with errors."""

    def missing(self, replies: Sequence[Any], sampling: Sampling) -> int:
        """Returns how many choices are missing."""
        return sampling.n - sum(len(reply.choices) for reply in replies)

    def bodies(self, request: Request, replies: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns one body for all missing answers, or one for each if the server gives one at a time."""
        missing = self.missing(replies, request.sampling)
        got = request.sampling.n - missing
        one_by_one = self._llm.one_by_one or bool(replies)  # a reply had fewer than it was asked for
        counts = [1] * missing if one_by_one else [missing]
        seeds = [None if request.seed is None else request.seed + got + index for index in range(len(counts))]
        found = [self._llm.parameters(request, count, seed) for count, seed in zip(counts, seeds, strict=True)]
        return [{**parameters, **parameters.pop("extra_body", {})} for parameters in found]

    def line(self, custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Returns a line of the file."""
        return {"custom_id": custom_id, "method": "POST", "url": self.endpoint, "body": body}

    def submit(self, file: Path, label: str, rows: int, once: Once) -> str:
        """Uploads the file and creates the job."""
        name = f"datadreamer-like-{label}.jsonl"

        def find_file() -> Any:
            size = file.stat().st_size  # one that is not whole is not used
            return next((each for each in self.files() if each.filename == name and each.bytes == size), None)

        def upload() -> Any:
            with file.open("rb") as content:
                return self._llm.client.files.create(file=(name, content, "application/jsonl"), purpose="batch")

        def find_job() -> Any:
            return next((job for job in self.jobs() if (job.metadata or {}).get(_LABEL) == label), None)

        file_id = once("file", find_file, upload)
        return once("batch", find_job, lambda: self.create(file_id, label))

    def download(self, batch: str, to: BinaryIO) -> None:
        """Writes the lines of answers, then those of errors."""
        for file_id in self.result_files(batch):
            if file_id is not None:
                with self._llm.client.files.with_streaming_response.content(file_id) as response:
                    for part in response.iter_bytes():
                        to.write(part)
                to.write(b"\n")

    def read(self, line: Any) -> LineResult:
        """Returns the result in a line: a completion, or its error."""
        custom_id, response, error = line["custom_id"], line.get("response"), line.get("error")
        if response is not None:
            status, body = response["status_code"], response["body"]
            if status != 200:
                return LineResult(custom_id, error=RefusedLine(status, body))
            reply = self.reply(body)
            return LineResult(custom_id, reply, ErrorInAnswer(body) if reply is None else None)
        code = error.get("code") if isinstance(error, dict) else None
        return LineResult(custom_id, error=None if code in _UNPROCESSED else RefusedLine(500, error))

    def answer(self, replies: Sequence[Any], sampling: Sampling) -> Answer:
        """Returns the answer that completions hold."""
        return self._llm.answer_from(replies, sampling)


class OpenAIBatches(FileBatches):
    """At most 50,000 requests and 200 MB a batch."""

    limits = BatchLimits(50_000, 190_000_000)

    def files(self) -> Iterator[Any]:
        """Yields the uploaded files."""
        return iter(self._llm.client.files.list(purpose="batch"))

    def jobs(self) -> Iterator[Any]:
        """Yields the batches, the newest first."""
        return iter(self._llm.client.batches.list(limit=_PAGE))

    def create(self, file_id: str, label: str) -> Any:
        """Creates a batch."""
        return self._llm.client.batches.create(
            input_file_id=file_id, endpoint=self.endpoint, completion_window="24h", metadata={_LABEL: label}
        )

    def poll(self, batch: str) -> BatchState:
        """Asks for the state."""
        found = self._llm.client.batches.retrieve(batch)
        counts, status = found.request_counts, str(found.status)
        done = 0 if counts is None else counts.completed + counts.failed
        errors = (found.errors and found.errors.data) or []
        failure = "" if status != "failed" else "; ".join(each.message or "" for each in errors) or "no reason is given"
        return BatchState(
            status.replace("_", " "),
            done,
            ended=status in ("completed", "expired", "cancelled"),
            cancelled=status == "cancelled",
            failure=failure,
            queue_full=status == "failed" and any(each.code == "token_limit_exceeded" for each in errors),
        )

    def result_files(self, batch: str) -> list[str | None]:
        """Returns the ids of the files with answers and with errors."""
        found = self._llm.client.batches.retrieve(batch)
        if found.output_file_id is None and found.request_counts and found.request_counts.completed:
            raise UnknownModel(f"The batch {batch} has no file of answers any more.")
        return [found.output_file_id, found.error_file_id]


class ResponsesBatches(OpenAIBatches):
    """Batches of OpenAI's Responses API."""

    endpoint = "/v1/responses"

    def reply(self, body: Any) -> Any:
        """Returns the response in the body of one; None if it failed."""
        from openai.types.responses import Response

        return None if not isinstance(body, dict) or body.get("error") else Response.construct(**body)

    def missing(self, replies: Sequence[Any], sampling: Sampling) -> int:
        """Returns how many answers are missing; each reply is one."""
        return sampling.n - len(replies)


class MistralBatches(FileBatches):
    """At most 1,000,000 requests wait in a workspace; files have at most 512 MB."""

    limits = BatchLimits(100_000, 400_000_000)

    def files(self) -> Iterator[Any]:
        """Yields the uploaded files."""
        return self._pages("/files", {"purpose": "batch"})

    def jobs(self) -> Iterator[Any]:
        """Yields the jobs."""
        return self._pages("/batch/jobs", {})

    def create(self, file_id: str, label: str) -> Any:
        """Creates a job."""
        body = {
            "input_files": [file_id], "endpoint": self.endpoint, "model": self._llm.model_name,
            "metadata": {_LABEL: label},
        }  # fmt: skip
        return SimpleNamespace(**self._llm.client.post("/batch/jobs", cast_to=object, body=body))

    def poll(self, batch: str) -> BatchState:
        """Asks for the state."""
        job = self._job(batch)
        status = str(job["status"])
        failure = ""
        if status == "FAILED" and not (job.get("output_file") or job.get("error_file")):
            said = [str(error.get("message") or "") for error in job.get("errors") or ()]
            failure = "; ".join(filter(None, said)) or "no reason is given"
        return BatchState(
            status.replace("_", " ").lower(),
            int(job.get("completed_requests") or 0),
            ended=status in ("SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED"),
            cancelled=status == "CANCELLED",
            failure=failure,
        )

    def result_files(self, batch: str) -> list[str | None]:
        """Returns the ids of the files with answers and with errors."""
        job = self._job(batch)
        return [job.get("output_file"), job.get("error_file")]

    def _job(self, batch: str) -> dict[str, Any]:
        found: dict[str, Any] = self._llm.client.get(f"/batch/jobs/{batch}", cast_to=object)
        return found

    def _pages(self, path: str, wanted: dict[str, str]) -> Iterator[Any]:
        number, count = 0, 0
        while True:
            params = {**wanted, "page": number, "page_size": _PAGE}
            page: dict[str, Any] = self._llm.client.get(path, cast_to=object, options={"params": params})
            each = page.get("data") or []
            yield from (SimpleNamespace(**{"metadata": None, "filename": "", "bytes": 0, **item}) for item in each)
            number, count = number + 1, count + len(each)
            if not each or count >= int(page.get("total") or 0):
                return
