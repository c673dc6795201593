"""Where the contracts find what they hold for: the package's own stubs, so that nothing new has to be listed here."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "datadreamer_like"
ROOMS = sorted(stub.parent.name for stub in PACKAGE.glob("*/__init__.pyi"))


def names_of(room: str) -> list[str]:
    """The public names of a room, as its stub lists them."""
    stub = ast.parse((PACKAGE / room / "__init__.pyi").read_text(encoding="utf-8"))
    return sorted(alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names)


def public(room: str, name: str) -> Any:
    return getattr(importlib.import_module(f"datadreamer_like.{room}"), name)


def classes_of(*rooms: str, below: type | None = None) -> list[type]:
    """The public classes of rooms that can be made: no abstract ones."""
    found = [public(room, name) for room in rooms for name in names_of(room)]
    return [
        thing
        for thing in found
        if inspect.isclass(thing) and not inspect.isabstract(thing) and (below is None or issubclass(thing, below))
    ]
