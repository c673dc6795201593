"""The node: a named, fingerprinted, cached unit of work in a session. Steps, trainers and stages are nodes."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, SessionError

from .card import Card, oldest_first
from .engine import Engine
from .progress import describe_usage, duration
from .results import Kept, Manifest, Outcome, Results, Wanted, row_ranges
from .session import DataDreamer, current_session
from .usage import Usage, counting, current_usage

logger = logging.getLogger("datadreamer_like")

_working: ContextVar[Node | None] = ContextVar("datadreamer_like_node", default=None)


def working_node() -> Node | None:
    """Returns the node that is running in this context."""
    return _working.get()


@contextmanager
def working(node: Node) -> Iterator[None]:
    """Sets the running node inside the block."""
    token = _working.set(node)
    try:
        yield
    finally:
        _working.reset(token)


def reading_engine() -> Engine:
    """Returns the session's engine while a node runs, else one in this process: a script may read only a few rows."""
    session = current_session()
    return Engine() if session is None or working_node() is None else session.engine


class Node:
    """Base of steps, trainers and stages.

    A subclass returns the fingerprints of its parts in `fingerprint_parts`, makes its result in `build`, and calls
    `find_or_make`. In a session the name is made unique. With `force`, it runs even if the result exists, and nodes
    that depend on it run again if the new one differs. Without a terminal, there is a progress line every
    `progress_interval` seconds; None for none.

    Attributes:
        folder: The result's folder; None outside a session.
        inside: The node that made this one while it ran.
        parents: The nodes that this one depends on.
        usage: Rows, requests, tokens and cost of this run.
    """

    kind: ClassVar[Literal["step", "trainer", "stage"]]

    _log_level: int | None = None

    def __init__(self, name: str, *, force: bool = False, progress_interval: float | None = 60) -> None:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"The name of a {self.kind} must be a string, not {name!r}.")
        if not name:
            raise DefinitionError(f"The name of a {self.kind} is empty. Say in a few words what it does.")
        self.session: DataDreamer | None = current_session()
        self.name = name
        self.folder: Path | None = None
        self.inside: Node | None = working_node()
        self._kept_in: Results | None = None
        if self.session is not None:
            self._kept_in = self.session.results
            self.name, self.folder = self._kept_in.claim(name, None if self.inside is None else self.inside.name)
        self.force = force
        self.progress_interval = progress_interval
        self.parents: list[Node] = []
        self.usage = Usage()
        self.manifest: Manifest | None = None

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprint of each part that determines the result, by name; a subclass writes this."""
        raise NotImplementedError(f"{type(self).__name__} has no fingerprint_parts().")

    @cached_property
    def parts(self) -> dict[str, str]:
        """The fingerprint of each part that determines the result, by name."""
        return self.fingerprint_parts()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines the result; the node's name is not included."""
        hasher = hashlib.blake2b(digest_size=16)
        for name, part in sorted(self.parts.items()):
            hasher.update(f"{name}\0{part}\0".encode())
        return hasher.hexdigest()

    @property
    def result_fingerprint(self) -> str:
        """The fingerprint that dependents see: it differs once `force` has replaced the result by a different one."""
        return self.fingerprint + (self.manifest.remade if self.manifest is not None else "")

    def __fingerprint__(self) -> tuple[str, str]:
        return "node", self.result_fingerprint

    @cached_property
    def card(self) -> Card:
        """The origin of the result."""
        # Those of ancestors first: a chain may be longer than Python's stack.
        for node in oldest_first(self, lambda node: [] if "card" in vars(node) else node.parents)[:-1]:
            _ = node.card
        if self.manifest is not None and self.manifest.card:
            card = Card(**{**self.manifest.card, "parents": []})
            # The result may have been made under another name; the current one is shown.
            card.name = self.name
        else:
            card = Card(self.name, self.kind, type(self).__name__)
        card.parents = [parent.card for parent in self.parents]
        return card

    @property
    def wanted(self) -> Wanted:
        """The result that this node needs; only in a session."""
        if self.folder is None:
            raise SessionError(f'"{self.name}" was made outside a session, so it has no folder.')
        return Wanted(self.name, self.folder, self.fingerprint, self.parts, self.force)

    @property
    def result_folder(self) -> Path:
        """Folder of the result, also if it has become an older one since."""
        wanted = self.wanted
        assert self._kept_in is not None
        return self._kept_in.folder_of(wanted)

    @property
    def scratch(self) -> Path:
        """A folder for unfinished work, which survives a kill and is removed when the result is complete."""
        wanted = self.wanted
        assert self._kept_in is not None
        return self._kept_in.scratch(wanted)

    def build(self, draft: Path) -> Outcome:
        """Makes the result; a subclass writes this.

        It fills `draft`, an empty folder that becomes the result's, and returns `self.kept()`; or it returns `OnDemand`
        for a result that is made each time it is read.
        """
        raise NotImplementedError(f"{type(self).__name__} has no build().")

    def find_or_make(self) -> Outcome:
        """Loads this node's result, or makes it with `build`."""
        if self.session is None:
            raise SessionError(
                f'{type(self).__name__} "{self.name}" was made outside a session, so it cannot run. '
                "Make it inside `with DataDreamer(folder):`."
            )
        wanted, results, level = self.wanted, self.session.results, logger.level
        if self._log_level is not None:
            logger.setLevel(self._log_level)
        try:
            with working(self):
                found = None if self.force else results.find(wanted)
                outcome = found or results.make(wanted, self._run_build)
                if isinstance(outcome, Kept):
                    self.manifest = outcome.manifest
                    self.__dict__.pop("card", None)
                    self._report(outcome)
        finally:
            logger.setLevel(level)
        return outcome

    def _run_build(self, draft: Path) -> Outcome:
        assert self.session is not None
        logger.debug('running "%s"', self.name)
        started = time.monotonic()
        with counting(self.usage), self.session.progress.show(self.name, self.usage, self.progress_interval):
            outcome = self.build(draft)
            if isinstance(outcome, Kept):
                self._complete(outcome.manifest, time.monotonic() - started)
        return outcome

    def _complete(self, manifest: Manifest, seconds: float) -> None:
        """Adds the card and the failed rows to the manifest of a finished result."""
        card, usage = self.card, self.usage
        card.seconds = round(seconds, 3)
        card.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with suppress(importlib.metadata.PackageNotFoundError):
            card.package_version = importlib.metadata.version("datadreamer-like")
        card.rows = manifest.rows
        card.prompt_tokens, card.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        card.cost, card.failed_rows = usage.cost, usage.failed_rows
        manifest.card = card.without_parents()
        manifest.failed_rows = row_ranges(usage.failed)
        manifest.failures = {str(index): message for index, message in sorted(usage.failures.items())}

    def _report(self, outcome: Kept) -> None:
        manifest, usage = outcome.manifest, self.usage
        parts = ["found finished" if outcome.found else "done"]
        if manifest.rows is not None:
            parts.append(f"{manifest.rows:,} rows")
        if not outcome.found:
            current_usage().add(**usage.of_models())
            parts += [duration(manifest.card.get("seconds", 0.0)), *describe_usage(usage)]
        logger.info("%s: %s", self.name, ", ".join(parts))
        if manifest.failures:
            row, message = next(iter(manifest.failures.items()))
            text = "%s: %s of its rows failed and have no value; the first is row %s: %s%s"
            count, hint = len(manifest.failed), " Pass force=True to try them again." if outcome.found else ""
            logger.warning(text, self.name, f"{count:,}", row, message, hint)

    def note_read(self, share: float) -> None:
        """Called while lazy rows of this node are read, with the share that was read; a subclass may record it."""

    def kept(self, **fields: Any) -> Kept:
        """Returns the outcome of `build` for a result in its folder; `fields` are those of its manifest."""
        return Kept(Manifest(self.name, type(self).__name__, self.fingerprint, dict(self.parts), **fields))
