"""A fine-tuning job on a server with OpenAI's API: files are uploaded and the job created once, also if killed."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from datadreamer_like.errors import MalformedAnswer, ModelError, NewerFormat, StorageError, UnknownModel
from datadreamer_like.graph import current_usage
from datadreamer_like.models import OpenAI
from datadreamer_like.models.calls.sent_once import sent_once
from datadreamer_like.models.llms.endpoint import shown_address
from datadreamer_like.storage.folders import write_file
from datadreamer_like.storage.seals import read_sealed, sealed

logger = logging.getLogger("datadreamer_like")

STATE_NAME = "job.json"
STATE_FORMAT = 1
_FAILED = ("failed", "cancelled")


class FineTuningJob:
    """The job of one trainer, whose ids are written to `folder` as soon as they are known.

    What was begun is written before each request. If the answer to it is lost, with the process or with the connection,
    the server is searched for what the request made before it is sent again: a file by its name, which is unique, and
    a job by the id of its training file.

    Args:
        llm: The model to fine-tune, whose client sends the requests.
        name: Name of the trainer, for messages.
        folder: Folder that survives a kill.
        label: Start of the names of the uploaded files.
    """

    def __init__(self, llm: OpenAI, name: str, folder: Path, label: str) -> None:
        self.llm = llm
        self.name = name
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / STATE_NAME
        self._has_events = True
        if self._path.is_file():
            self._state: dict[str, Any] = self._read()
        else:
            # The random part distinguishes this job from an earlier one for the same model and rows.
            label = f"{label}-{uuid.uuid4().hex[:8]}"
            self._state = {"format": STATE_FORMAT, "label": label, "begun": [], "ids": {}}
            self._write()

    @property
    def id(self) -> str | None:
        """The job's id; None before it is created."""
        found: str | None = self._state["ids"].get("job")
        return found

    def upload(self, path: Path) -> str:
        """Uploads a file of rows, unless that was done, and returns its id."""
        files = self.llm.client.files
        name = f"{self._state['label']}-{path.name}"

        def find() -> Any:
            # A file that is not whole, or that the server could not read, is not used.
            return self._first(
                lambda: files.list(purpose="fine-tune"),
                lambda file: (
                    (file.filename, file.bytes) == (name, path.stat().st_size)
                    and getattr(file, "status", None) != "error"
                ),
            )

        def send() -> Any:
            with path.open("rb") as content:
                return files.create(file=(name, content, "application/jsonl"), purpose="fine-tune")

        if self._state.get("failed") and path.name in self._state["ids"] and self.llm.retry_wrapper(find) is None:
            del self._state["ids"][path.name]  # the server deleted it since
            self._state["begun"].remove(path.name)
        current_usage().note = f"uploading {path.name}"
        return self._once(path.name, find, send)

    def create(self, training_file: str, validation_file: str | None, settings: Mapping[str, Any]) -> str:
        """Creates the job, unless that was done, and returns its id."""
        jobs = self.llm.client.fine_tuning.jobs
        files = {"training_file": training_file, "validation_file": validation_file}
        given = {name: value for name, value in files.items() if value is not None}

        def find() -> Any:
            failed = self._state.get("failed", ())
            return self._first(
                jobs.list, lambda job: job.training_file == training_file and job.id not in failed, unknown_job
            )

        unknown_job = (
            f'"{self.name}": the answer to the request for a fine-tuning job was lost, and '
            f"{shown_address(self.llm.base_url)} does not list its jobs, so there may be one that is paid "
            f"for. Look there for a job with the training file {training_file}, cancel it if there is one, delete "
            f"{self.folder}, and run again: another job is created."
        )

        def send() -> Any:
            return jobs.create(model=self.llm.model_name, **given, **settings)

        current_usage().note = "creating the job"
        created = self._once("job", find, send)
        logger.info(
            '"%s": %s runs the fine-tuning job %s; if this script ends, the next run waits for the same job',
            self.name, shown_address(self.llm.base_url), created,
        )  # fmt: skip
        return created

    def wait(self, seconds: float) -> Any:
        """Asks for the job's state every so many seconds until the job has succeeded, and returns the job.

        Raises:
            ModelError: The job failed or was cancelled. The next run creates another one, of the same files.
        """
        jobs = self.llm.client.fine_tuning.jobs
        assert self.id is not None
        while True:
            try:
                job = self.llm.retry_wrapper(jobs.retrieve, self.id)
            except UnknownModel as error:
                raise ModelError(
                    f'"{self.name}": {shown_address(self.llm.base_url)} does not have the fine-tuning job {self.id} '
                    f"that an earlier run created: {error} Use the key and the organization of that run, or delete "
                    f"{self.folder} to create another job."
                ) from error
            if job.status in _FAILED:
                failed = self.id
                self._state["failed"] = [*self._state.get("failed", ()), self._state["ids"].pop("job")]
                self._state["begun"].remove("job")
                self._write()
                said = self.llm.secrets.taken_out_of((job.error and job.error.message) or "the server gives no reason")
                raise ModelError(
                    f'"{self.name}": the fine-tuning job {failed} at {shown_address(self.llm.base_url)} '
                    f"{'was cancelled' if job.status == 'cancelled' else 'failed'}: {said.rstrip('.')}. "
                    "If that can be fixed, run again: a new job is created."
                )
            if job.status == "succeeded":
                if not job.fine_tuned_model:
                    raise MalformedAnswer(f"The fine-tuning job {self.id} succeeded, but its model has no name.")
                return job
            current_usage().note = self._progress(job)
            time.sleep(seconds)

    def curve(self, epochs: object) -> list[dict[str, float]]:
        """Returns the losses that the job reported, by step: "step", "epoch", "loss" and "eval_loss" where known.

        None, after a warning, from a server without events.
        """
        jobs = self.llm.client.fine_tuning.jobs
        events = self._events(lambda: list(jobs.list_events(self.id, limit=100)))  # all pages
        found = {point["step"]: point for event in events if (point := _point(event, epochs)) is not None}
        return [found[step] for step in sorted(found)]

    def _progress(self, job: Any) -> str:
        jobs = self.llm.client.fine_tuning.jobs
        events = self._events(lambda: jobs.list_events(self.id, limit=20).data)
        points = [point for event in events if (point := _point(event, None)) is not None]
        parts = [f"job {job.id} {job.status.replace('_', ' ')}"]
        if points:
            last = max(points, key=lambda point: point["step"])
            parts.append(f"step {last['step']:,.0f}" + (f" of {last['of']:,.0f}" if "of" in last else ""))
            parts += [f"{what} {last[key]:.3f}" for key, what in _LOSSES.items() if key in last]
        if job.trained_tokens:
            parts.append(f"{job.trained_tokens:,} trained tokens")
        return ", ".join(parts)

    def _events(self, get: Callable[[], list[Any]]) -> list[Any]:
        """Returns a job's events; none from a server that does not have them, which is warned of once."""
        if self._has_events:
            try:
                return self.llm.retry_wrapper(get)
            except UnknownModel:
                self._has_events = False
                logger.warning(
                    '"%s": %s does not have the events of the job %s, so its losses are unknown: no curve.',
                    self.name, shown_address(self.llm.base_url), self.id,
                )  # fmt: skip
        return []

    def _first(
        self, listed: Callable[[], Iterable[Any]], wanted: Callable[[Any], bool], unlisted: str | None = None
    ) -> Any:
        """Returns what is wanted from a list; None if the server has no list, or an error with the text `unlisted`."""
        try:
            return next((each for each in listed() if wanted(each)), None)
        except Exception as error:
            failure = self.llm.error_of(error)
            if not isinstance(failure, UnknownModel):
                raise
        if unlisted is not None:
            raise ModelError(unlisted)
        return None

    def _once(self, what: str, find: Callable[[], Any], send: Callable[[], Any]) -> str:
        return sent_once(self._state, what, find, send, self.llm.retry_wrapper, self._write)

    def _read(self) -> dict[str, Any]:
        try:
            state = read_sealed(self._path)
        except StorageError as error:
            raise StorageError(
                f'"{self.name}": {error}. It has the id of a fine-tuning job that may have been paid for, so nothing '
                f"is sent. Look for the job at {shown_address(self.llm.base_url)}, cancel it if it is not done, delete "
                f"{self.folder}, and run again: another job is created."
            ) from error
        NewerFormat.check(self._path, state.get("format"), STATE_FORMAT)
        return state

    def _write(self) -> None:
        write_file(self._path, sealed(self._state))


_LOSSES = {"loss": "training loss", "eval_loss": "validation loss"}


def _point(event: Any, epochs: object) -> dict[str, float] | None:
    """Returns the losses of an event with metrics; None for other events."""
    data = event.data
    if not isinstance(data, Mapping) or not _is_number(data.get("step")):
        return None
    names = {"loss": ("train_loss",), "eval_loss": ("full_valid_loss", "valid_loss"), "of": ("total_steps",)}
    found = {
        name: next((float(data[key]) for key in keys if _is_number(data.get(key))), None)
        for name, keys in names.items()
    }
    point = {"step": float(data["step"]), **{name: value for name, value in found.items() if value is not None}}
    if epochs is None:
        return point
    total = point.pop("of", None)
    point["epoch"] = point["step"] / total * (epochs if isinstance(epochs, int) else 1) if total else point["step"]
    return point


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
