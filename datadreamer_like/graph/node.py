"""The node: a named, fingerprinted, cached unit of work in a session. Steps, trainers and stages are nodes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from datadreamer_like.errors import SessionError, StorageError

from .card import Card
from .manifest import Manifest
from .session import DataDreamer, aside_of, current_session
from .usage import Usage

logger = logging.getLogger("datadreamer_like")

_working: ContextVar[Node | None] = ContextVar("datadreamer_like_node", default=None)


def working_node() -> Node | None:
    """Returns the node whose work this code is part of."""
    return _working.get()


class Node:
    """What steps, trainers and stages have in common.

    A subclass says what decides its result in `fingerprint_parts` and calls `settle` to have it found or made.

    Args:
        name: The name that the script gave; in a session it becomes unique.
        force: Make the result again although it is there.
        progress_interval: Seconds between progress lines where there is no terminal; None for none.

    Attributes:
        kind: What sort of node this is.
        name: The name within the session.
        session: The session that the node was made in, or None.
        folder: Where the result stands when it is complete; None outside a session.
        parents: The nodes that this one was made from.
        usage: What the node has used in this run.
    """

    kind: ClassVar[Literal["step", "trainer", "stage"]]

    _log_level: int | None = None

    def __init__(self, name: str, *, force: bool = False, progress_interval: float | None = 60) -> None:
        self.session: DataDreamer | None = current_session()
        self.name = name
        self.folder: Path | None = None
        self.inside: Node | None = working_node()
        if self.session is not None:
            self.name, self.folder = self.session.claim(name, self.inside)
        self.force = force
        self.progress_interval = progress_interval
        self.parents: list[Node] = []
        self.usage = Usage()
        self.manifest: Manifest | None = None

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns what decides the result, by name, each with its fingerprint."""
        raise NotImplementedError

    @cached_property
    def parts(self) -> dict[str, str]:
        """What decides the result, by name, each with its fingerprint."""
        return self.fingerprint_parts()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides the result; names are no part of it."""
        hasher = hashlib.blake2b(digest_size=16)
        for name, part in sorted(self.parts.items()):
            hasher.update(f"{name}\0{part}\0".encode())
        return hasher.hexdigest()

    def __fingerprint__(self) -> tuple[str, str]:
        return "node", self.fingerprint

    @cached_property
    def card(self) -> Card:
        """What is known of the result's origin."""
        # Oldest first, and not by recursion: a chain may be longer than Python's stack.
        for node in _without_card(self):
            _ = node.card
        if self.manifest is not None and self.manifest.card:
            card = Card(**{**self.manifest.card, "parents": []})
            # A renamed parent, or this node under another name, is found by its fingerprint: today's names are shown.
            card.name = self.name
        else:
            card = Card(self.name, self.kind, type(self).__name__)
        card.parents = [parent.card for parent in self.parents]
        return card

    @property
    def result_folder(self) -> Path:
        """Where the result stands: in `folder`, or aside where a later session has put another result since.

        Raises:
            SessionError: The node was made outside a session.
            StorageError: The result was removed.
        """
        if self.folder is None:
            raise SessionError(f'"{self.name}" was made outside a session, so it has no folder.')
        for folder in (self.folder, aside_of(self.folder) / self.fingerprint):
            found = Manifest.read(folder)
            if found is not None and found.fingerprint == self.fingerprint:
                return folder
        raise StorageError(f'The result of "{self.name}" is no longer in {self.folder}. Run the script again.')

    @property
    def scratch(self) -> Path:
        """A folder for unfinished work that outlives a killed process and goes when the result is complete."""
        if self.session is None or self.folder is None:
            raise SessionError(f'"{self.name}" was made outside a session, so it has no folder to work in.')
        return self.session.folder / ".work" / f"{self.folder.name}-{self.fingerprint}"

    def settle(self, build: Callable[[Path], Manifest]) -> Manifest:
        """Finds this node's result, or makes it with `build`, which fills a folder and returns the manifest.

        Raises:
            SessionError: The node was made outside a session.
        """
        if self.session is None:
            raise SessionError(
                f'{type(self).__name__} "{self.name}" was made outside a session, so it cannot run. '
                "Make it inside `with DataDreamer(folder):`."
            )
        with self.at_work(), self._at_log_level():
            manifest = self.session.settle(self, build)
        self.manifest = manifest
        self.__dict__.pop("card", None)
        return manifest

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Makes this node the one that nodes made inside the block belong to."""
        token = _working.set(self)
        try:
            yield
        finally:
            _working.reset(token)

    @contextmanager
    def _at_log_level(self) -> Iterator[None]:
        level = logger.level
        if self._log_level is not None:
            logger.setLevel(self._log_level)
        try:
            yield
        finally:
            logger.setLevel(level)

    def new_manifest(self, **fields: object) -> Manifest:
        """Returns a manifest of this node's result."""
        manifest = Manifest(self.name, type(self).__name__, self.fingerprint, dict(self.parts))
        for name, value in fields.items():
            setattr(manifest, name, value)
        return manifest


def _without_card(node: Node) -> list[Node]:
    """Returns the nodes behind one that have no card yet, each after those that it was made from."""
    found: dict[int, Node] = {}
    waiting = [(parent, False) for parent in node.parents]
    while waiting:
        current, parents_done = waiting.pop()
        if parents_done:
            found.setdefault(id(current), current)
        elif id(current) not in found and "card" not in vars(current):
            waiting.append((current, True))
            waiting.extend((parent, False) for parent in current.parents)
    return list(found.values())
