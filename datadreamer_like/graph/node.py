"""The node: a named, fingerprinted, cached unit of work in a session. Steps, trainers and stages are nodes."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, ModelError, NotMade, SessionError, StorageError
from datadreamer_like.storage.seals import SEAL_NAME

from .card import Card, oldest_first
from .engine import Engine
from .fingerprint import digest_as_is, digest_before_changes
from .installed import is_installed
from .manifest import MANIFEST_NAME, Manifest, row_ranges
from .own_changes import Place, noting_changes, watching
from .plan import Forecast
from .progress import describe_usage, duration
from .results import Kept, Outcome, Results, Unmade, Wanted
from .session import DataDreamer, current_session
from .threads import interrupt_check
from .tracebacks import noting_errors
from .usage import Usage, counting, current_usage, log_cut_off

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
        folder: Link to the result's folder, by the node's name; None outside a session.
        inside: The node that made this one while it ran.
        parents: The nodes that this one depends on.
        usage: Rows, requests, tokens and cost of this run.
    """

    kind: ClassVar[Literal["step", "trainer", "stage"]]

    _log_level: int | None = None

    expected_rows: int | None = None
    """Number of rows that a plan expects, of a node that it does not run."""

    preview_rows: int | None = None
    """Number of rows that the node is a preview of, as its session or the node that makes it is; None for all rows."""

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
        self._place: Path | None = None
        if self.session is not None:
            outer = self.session.preview if self.inside is None else self.inside.preview_rows
            self.preview_rows = min((size for size in (self.preview_rows, outer) if size is not None), default=None)
            self._kept_in = self.session.results.of_preview(self.preview_rows)
            self.name, self.folder = self._kept_in.claim(name, None if self.inside is None else self.inside.name)
        self.force = force
        self.progress_interval = progress_interval
        self.parents: list[Node] = []
        self._variables: list[Place] = []
        self.usage = Usage()
        self.manifest: Manifest | None = None
        if self.session is not None and self.session.planned is not None:
            self.session.planned.constructed(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprint of each part that determines the result, by name; a subclass writes this."""
        raise NotImplementedError(f"{type(self).__name__} has no fingerprint_parts().")

    @cached_property
    def parts(self) -> dict[str, str]:
        """The fingerprint of each part that determines the result, by name."""
        with watching() as self._variables:
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
        """Folder of the result, checked for damage; later runs do not change it.

        Raises:
            SessionError: The node was made outside a session, or has no saved result.
            StorageError: The result was removed, or is damaged.
        """
        self.need_result()
        if self.folder is None or self._place is None or self.manifest is None:
            raise SessionError(f'"{self.name}" has no folder: it was made outside a session, or it is not saved.')
        if not self._place.is_dir():
            raise StorageError(f'The result of "{self.name}" is no longer in {self._place}. Run the script again.')
        damage = self.manifest.damage(self._place)
        if damage:
            raise StorageError(f'"{self.name}": {damage}. Run the script again: the result is made again.')
        return self._place

    @property
    def previous(self) -> Manifest | None:
        """The manifest of the result that the name links to, of this or an earlier run; None if there is none."""
        return None if self._kept_in is None or self.folder is None else self._kept_in.current(self.folder)

    @property
    def keeps_failed_rows(self) -> bool:
        """Whether rows that failed in an earlier run are left as they are, and not requested again."""
        return False

    @property
    def scratch(self) -> Path:
        """A folder for unfinished work, which survives a kill and is removed when the result is complete."""
        wanted = self.wanted
        assert self._kept_in is not None
        return self._kept_in.scratch(wanted)

    @property
    def is_unmade(self) -> bool:
        """Whether this node is only planned, and would run."""
        return self.session is not None and self.session.planned is not None and self.manifest is None

    def leave_out_of_plan(self) -> bool:
        """Returns whether this node is only planned; the plan does not show it, since nothing of it is saved."""
        if self.session is None or self.session.planned is None:
            return False
        self.session.planned.leave_out(self)
        return True

    def discard(self) -> None:
        """Gives the name back and leaves the node out of a plan, if it was made only to check arguments."""
        if self._kept_in is not None and self.folder is not None:
            self._kept_in.give_back(self.folder)
        self.leave_out_of_plan()

    def need_result(self) -> None:
        """Raises `NotMade` if this node is only planned, and would run."""
        if self.is_unmade:
            raise NotMade(f'it needs the result of "{self.name}", which has not run.')

    def forecast(self) -> Forecast:
        """Returns what running the node takes, for a plan; a subclass that knows more overrides this."""
        previous = self.previous
        return Forecast(seconds=None if previous is None else previous.card.get("seconds"))

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
        if self.session.planned is not None:
            return self._planned()
        assert self._kept_in is not None
        results, level = self._kept_in, logger.level
        if self._log_level is not None:
            logger.setLevel(self._log_level)
        try:
            with noting_errors(f'"{self.name}" called'), working(self):
                wanted = self.wanted
                outcome = (None if self.force else results.find(wanted)) or results.make(wanted, self._run_build)
                if isinstance(outcome, Kept) and outcome.found and outcome.manifest.retriable_rows:
                    outcome = self._retry_failed_rows(outcome, wanted, results)
                if isinstance(outcome, Kept):
                    self.manifest, self._place = outcome.manifest, outcome.place
                    self.__dict__.pop("card", None)
                    self._report(outcome)
        finally:
            logger.setLevel(level)
        return outcome

    def _planned(self) -> Outcome:
        assert self.session is not None
        assert self.session.planned is not None
        assert self._kept_in is not None
        found, damage = self._kept_in.look(self.wanted, seal=False)
        if not self.session.planned.add(self, found, damage) or found is None:
            self.expected_rows = self.session.planned.nodes[-1].forecast.rows
            return Unmade()
        self.manifest, self._place = found.manifest, found.place
        self.__dict__.pop("card", None)
        return found

    def _retry_failed_rows(self, found: Kept, wanted: Wanted, results: Results) -> Outcome:
        """Makes a result with failed rows again; answers come from the cache, so only these rows are requested."""
        count = f"{found.manifest.retriable_rows:,}"
        if self.keeps_failed_rows:
            return found
        logger.info('%s: requesting %s failed rows again; on_error="keep" leaves them', self.name, count)
        self.usage.retries = True
        try:
            return results.make(replace(wanted, again=True), self._run_build)
        except ModelError as error:
            text = "%s: its %s failed rows cannot be requested again now, so the earlier result is used: %s"
            logger.warning(text, self.name, count, error)
            return found
        finally:
            self.usage.retries = False

    def _run_build(self, draft: Path) -> Outcome:
        assert self.session is not None
        logger.debug('running "%s"', self.name)
        started, check = time.monotonic(), interrupt_check()
        showing = self.session.progress.show(self.name, self.usage, self.progress_interval)
        with counting(self.usage), showing, self.noting_changes():
            outcome = self.build(draft)
            check()
            if isinstance(outcome, Kept):
                self._complete(outcome.manifest, time.monotonic() - started)
        return outcome

    def noting_changes(self) -> AbstractContextManager[None]:
        """Notes what the node's functions change inside the block, so that it is not taken for a change of the script.

        That is the node's own variables, and those of lazy nodes that it reads.
        """
        places, waiting, seen = [], [self], {id(self)}
        for node in waiting:  # grows while it is walked
            own = not is_installed(type(node).__module__)
            places += [place for place in node._variables if place.may_change(own)]
            lazy = [parent for parent in node.parents if parent.manifest is None and id(parent) not in seen]
            seen.update(map(id, lazy))
            waiting += lazy
        if threading.current_thread() is not threading.main_thread() or (self.session and self.session.has_background):
            places = []  # the script goes on in the meantime, and may change them itself
        return noting_changes(places, digest_as_is, digest_before_changes)

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
        manifest.retriable_rows = usage.retriable_rows
        manifest.failures = {str(index): message for index, message in sorted(usage.failures.items())}
        manifest.set_cut_off(usage.cut_off)

    def _report(self, outcome: Kept) -> None:
        manifest, usage = outcome.manifest, self.usage
        parts = ["found finished" if outcome.found else "done"]
        if manifest.rows is not None:
            parts.append(f"{manifest.rows:,} rows")
        if outcome.found and manifest.failed_rows:
            parts.append(f"{len(manifest.failed):,} failed")
        if not outcome.found:
            current_usage().add(**usage.of_models())
            parts += [duration(manifest.card.get("seconds", 0.0)), *describe_usage(usage)]
        logger.info("%s: %s", self.name, ", ".join(parts))
        if self.inside is not None and not self.keeps_failed_rows:
            self.inside.usage.add(retriable_rows=manifest.retriable_rows)
        if manifest.failures:
            row, message = next(iter(manifest.failures.items()))
            text = "%s: %s of its rows failed and have no value; the first is row %s: %s%s"
            again, total = manifest.retriable_rows, len(manifest.failed)
            hint = f" The next run requests {'them' if again == total else f'{again:,} of them'} again."
            if self.keeps_failed_rows:
                hint = ""
            if not again:
                hint = " They would fail again; force=True tries them anyway."
            logger.warning(text, self.name, f"{total:,}", row, message, hint)
        log_cut_off(self.name, manifest.cut_off)

    def revise(self, change: Callable[[Path], None]) -> None:
        """Replaces the result by a copy of it, to which `change` is applied: a result itself is never changed."""
        place, manifest = self.result_folder, self.manifest
        assert manifest is not None
        assert self._kept_in is not None

        def build(draft: Path) -> Outcome:
            shutil.copytree(place, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_NAME, SEAL_NAME))
            change(draft)
            return Kept(replace(manifest))

        outcome = self._kept_in.make(replace(self.wanted, again=True), build)
        assert isinstance(outcome, Kept)
        self.manifest, self._place = outcome.manifest, outcome.place

    def note_read(self, share: float) -> None:
        """Called while lazy rows of this node are read, with the share that was read; a subclass may record it."""

    def kept(self, **fields: Any) -> Kept:
        """Returns the outcome of `build` for a result in its folder; `fields` are those of its manifest."""
        return Kept(Manifest(self.name, type(self).__name__, self.fingerprint, dict(self.parts), **fields))
