"""Answers of a real model, recorded once and replayed without it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from datadreamer_like import errors
from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    DataError,
    MalformedAnswer,
    MissingFile,
    ModelError,
    NewerFormat,
    OverBudget,
    RateLimited,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.llms.generation import Answer, Prompt, Request, Sampling, TokenLogprob
from datadreamer_like.models.llms.llm import LLM

from .fake_llm import FakeLLM
from .wrapped import ask_llm, checked_llm

logger = logging.getLogger("datadreamer_like")

_FORMAT = 1
# Of the moment: the next recording may have an answer.
_PASSING = (AuthenticationFailed, MalformedAnswer, OverBudget, RateLimited, Unavailable, UnknownModel)


class Recorded(LLM):
    """An LLM whose answers are recorded in a file once, with a key, and replayed from it without one.

    The file is JSON lines, to be committed next to the tests: prompts, options and answers. No key is in it. Answers
    are found by the prompt and the options; equal requests with random sampling get the recorded answers in turn.
    Rows that the model failed (a refusal, a prompt that is too long) are recorded too; failures of the moment are not.
    Several processes may record in one file.

    Args:
        cassette: The file.
        make_llm: The LLM, or a function that returns it. A function is only called to record, so that nothing needs a
            key when replaying.
        record: None records if the file does not exist, and only replays if it does. True also records prompts that
            the file does not have. False never records.

    Raises:
        MissingFile: The file does not exist, and `record` is False.
        DataError: It is not a cassette, or, when asked, it has no answer to a prompt.

    Example:
        >>> llm = Recorded("tests/topics.jsonl", lambda: OpenAI("gpt-5-mini"))  # doctest: +SKIP
        >>> llm.run(["Name a topic."])  # doctest: +SKIP
        ['Astronomy']
    """

    def __init__(
        self, cassette: str | Path, make_llm: LLM | Callable[[], LLM] | None = None, *, record: bool | None = None
    ) -> None:
        super().__init__()
        if not isinstance(cassette, str | os.PathLike):
            raise ArgumentTypeError(
                f"Recorded takes the path of a cassette, and then the LLM or a function that makes it, not "
                f"{cassette!r:.100}."
            )
        if not (make_llm is None or isinstance(make_llm, LLM) or callable(make_llm)):
            raise ArgumentTypeError(f"make_llm must be an LLM or a function that makes it, not {make_llm!r:.100}.")
        self.path = Path(cassette)
        if record is not None and not isinstance(record, bool):
            raise ArgumentTypeError(f"record must be True, False or None, not {record!r:.100}.")
        exists = self.path.exists()
        if not exists and (record is False or make_llm is None):
            raise MissingFile(
                f"There is no cassette {self.path}. Record it once, with the key in the environment: "
                'Recorded("...", lambda: OpenAI("..."), record=True).'
            )
        self._make_llm = make_llm
        self._llm: LLM | None = None
        self.records = not exists if record is None else record
        self._answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._turns: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        with self._alone():
            self._about = self._read() if self.path.exists() else self._start()
        self.model_name = self._about["model_name"]
        self.extra_options = frozenset(self._about["extra_options"])
        self.enforces_schemas = self._about["enforces_schemas"]
        self.tool_choices = frozenset(self._about.get("tool_choices", ()))
        self.takes_images = self._about.get("takes_images", True)
        self.max_context_length = self._about["max_context_length"]

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns a recording of a fake LLM, for tests and documentation."""
        import tempfile

        return cls(Path(tempfile.mkdtemp()) / "cassette.jsonl", FakeLLM())

    def identity(self) -> dict[str, Any]:
        """Returns the fingerprint of the recorded LLM, which is the same when replaying."""
        return {"llm": self._about["fingerprint"]}

    @property
    def display_name(self) -> str:
        """The LLM and the file."""
        return f"Recorded ({self._about['llm']}, {self.path.name})"

    @property
    def takes_chat(self) -> bool:
        """Whether the LLM sends a text as a chat message."""
        return bool(self._about["takes_chat"])

    def check(self, sampling: Sampling) -> None:
        """Refuses, while recording, what the LLM does not support."""
        if self._llm is not None:
            self._llm.check(sampling)

    async def answer(self, request: Request) -> Answer:
        """Replays the answer to one request, or records it."""
        key, asked = _key(request)
        with self._lock:
            turn, known = self._turns[key], self._answers[key]
            self._turns[key] += 1
        if turn < len(known) or (known and not self.records):
            return _replayed(known[turn % len(known)])
        if not self.records:
            raise DataError(self._missing(asked))
        try:
            answer = await ask_llm(self._recorded_llm(), request)
        except _PASSING:
            raise
        except ModelError as error:
            self._append(key, {**asked, "error": [type(error).__name__, str(error)]})
            raise
        if answer.error is None:
            self._append(key, {**asked, "answer": _written(answer)})
        elif not isinstance(answer.error, _PASSING):
            self._append(key, {**asked, "error": [type(answer.error).__name__, str(answer.error)]})
        return answer

    async def end_run(self) -> None:
        """Closes the LLM's connections."""
        if self._llm is not None:
            await self._llm.end_run()

    def _recorded_llm(self) -> LLM:
        if self._llm is None:
            if self._make_llm is None:
                raise DataError(f"{self.path} is to be recorded, but there is no LLM: Recorded(path, lambda: llm).")
            made = self._make_llm if isinstance(self._make_llm, LLM) else self._make_llm()
            self._llm = checked_llm(made, "Recorded")
        return self._llm

    def _start(self) -> dict[str, Any]:
        llm = self._recorded_llm()
        about = {
            "format": _FORMAT,
            "llm": llm.display_name,
            "model_name": llm.model_name,
            "fingerprint": fingerprint(llm),
            "extra_options": sorted(llm.extra_options),
            "enforces_schemas": llm.enforces_schemas,
            "tool_choices": sorted(llm.tool_choices),
            "max_context_length": llm.max_context_length,
            "takes_chat": llm.takes_chat,
            "takes_images": llm.takes_images,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(about)
        logger.info("recording answers of %s in %s", llm.display_name, self.path)
        return about

    def _read(self) -> dict[str, Any]:
        about: dict[str, Any] | None = None
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The cassette {self.path} cannot be read: {error}.") from error
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if about is None:
                    NewerFormat.check(self.path, record["format"], _FORMAT)
                    about = {**record, "fingerprint": str(record["fingerprint"])}
                    for name in ("llm", "model_name", "extra_options", "enforces_schemas", "takes_chat"):
                        record[name]
                else:
                    self._answers[_text_key(record["prompt"], record["options"])].append(record)
                    record["answer"] if "answer" in record else record["error"]
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(
                    f"The cassette {self.path}, line {number} cannot be read ({type(error).__name__}: {error}). Delete "
                    "the line, or the file, and record it again."
                ) from error
        if about is None:
            raise DataError(f"The cassette {self.path} is empty. Delete it, and record it again.")
        return about

    def _alone(self) -> FileLock:
        """Returns a lock against other processes that record in the same file, as those of pytest-xdist do."""
        name = hashlib.blake2b(str(self.path.resolve()).encode(), digest_size=8).hexdigest()
        return FileLock(Path(tempfile.gettempdir()) / f"datadreamer_like-cassette-{name}.lock")

    def _append(self, key: str, record: dict[str, Any]) -> None:
        with self._lock, self._alone():
            self._answers[key].append(record)
            self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")

    def _missing(self, asked: dict[str, Any]) -> str:
        others = [
            record["options"]
            for known in self._answers.values()
            for record in known
            if record["prompt"] == asked["prompt"]
        ]
        there = f" It has the prompt with other options: {json.dumps(others[0])}." if others else ""
        return (
            f"The cassette {self.path} has no answer of {self._about['llm']} to the prompt {asked['prompt']!r:.500} "
            f"with the options {json.dumps(asked['options'])}.{there} Record it once, with the key: delete the file, "
            "or pass record=True."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_make_llm", "_llm")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _make_llm=None, _llm=None)


def _key(request: Request) -> tuple[str, dict[str, Any]]:
    """Returns the key of a request, and its prompt and options as they are written."""
    default = Sampling()
    values = {each.name: getattr(request.sampling, each.name) for each in fields(Sampling)}
    options = {name: value for name, value in values.items() if value != getattr(default, name)}
    if request.seed is not None:
        options["seed"] = request.seed
    if request.tools != request.sampling.tools:
        options["tools"] = request.tools
    plain = json.loads(json.dumps({"prompt": _plain(request.prompt), "options": options}, default=str))
    return _text_key(plain["prompt"], plain["options"]), plain


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _text_key(prompt: Any, options: Any) -> str:
    return json.dumps([prompt, options], sort_keys=True)


def _written(answer: Answer) -> dict[str, Any]:
    values = {
        "texts": list(answer.texts),
        "finish_reasons": list(answer.finish_reasons),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "reasoning": answer.reasoning,
        "logprobs": answer.logprobs,
        "tool_calls": answer.tool_calls,
    }
    return {name: value for name, value in values.items() if value is not None}


def _replayed(record: Mapping[str, Any]) -> Answer:
    if "answer" not in record:
        name, said = record["error"]
        kind: Any = ModelError
        with suppress(AttributeError):
            kind = getattr(errors, name)
        return Answer.failed(kind(said) if issubclass(kind, ModelError) else ModelError(said))
    values = dict(record["answer"])
    if values.get("logprobs") is not None:
        values["logprobs"] = [
            [TokenLogprob(token, logprob, tuple(map(tuple, top))) for token, logprob, top in tokens]
            for tokens in values["logprobs"]
        ]
    return Answer(**values, cost=0.0)
