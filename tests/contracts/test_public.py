"""Every public name of every room imports and says what it is; those of re-export modules are the rooms' own."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from subjects import PACKAGE, ROOMS, names_of, public

PUBLIC = [(room, name) for room in ROOMS for name in names_of(room)]
RE_EXPORTS = ["llms", "embedders", "retrievers", "task_models", "datasets"]


def text_below(room: str, name: str) -> str:
    """The text below an assignment, which is the docstring of an alias or a constant."""
    stub = ast.parse((PACKAGE / room / "__init__.pyi").read_text(encoding="utf-8"))
    file = next(
        PACKAGE / room / f"{node.module.replace('.', '/')}.py"
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]
    )
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for node, following in zip(body, body[1:], strict=False):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(following, "value", None)
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
    return ""


def doc_of(room: str, name: str, thing: Any) -> str:
    if isinstance(thing, ModuleType) or inspect.isfunction(thing):
        return inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and thing.__module__.startswith("datadreamer_like."):
        # Inherited and generated docstrings say nothing of this class.
        doc = vars(thing).get("__doc__") or ""
        return "" if doc.startswith(f"{name}(") else doc
    return text_below(room, name)


@pytest.mark.parametrize(("room", "name"), PUBLIC)
def test_every_public_name_imports_and_its_docstring_begins_with_a_sentence(room: str, name: str) -> None:
    thing = public(room, name)
    first = doc_of(room, name, thing).strip().split("\n\n")[0].replace("\n", " ")
    assert re.match(r"[A-Z`0-9]", first), f"the docstring of {name} begins with {first!r}"
    assert first.endswith((".", ":")), f"the docstring of {name} begins with {first!r}, which is no sentence"
    assert len(first.split()) > 1


@pytest.mark.parametrize(("room", "name"), PUBLIC)
def test_every_public_function_and_method_says_what_it_does(room: str, name: str) -> None:
    thing = public(room, name)
    if not inspect.isclass(thing):
        return
    members = {
        key: value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        for key, value in vars(thing).items()
        if not key.startswith("_")
    }
    silent = [
        key
        for key, value in members.items()
        if inspect.isfunction(value) and value.__module__.startswith("datadreamer_like.") and not inspect.getdoc(value)
    ]
    assert silent == []


@pytest.mark.parametrize("module", RE_EXPORTS)
def test_the_ancestors_module_names_offer_the_rooms_own_classes(module: str) -> None:
    offered = importlib.import_module(f"datadreamer_like.{module}")
    assert offered.__all__
    for name in offered.__all__:
        room = "graph" if module == "datasets" else "models"
        assert getattr(offered, name) is public(room, name)


def test_no_public_name_hides_another() -> None:
    """A name that two rooms offer is one thing."""
    rooms_of: dict[str, list[str]] = {}
    for room, name in PUBLIC:
        rooms_of.setdefault(name, []).append(room)
    doubled = {
        name: rooms
        for name, rooms in rooms_of.items()
        if len(rooms) > 1 and len({id(public(room, name)) for room in rooms}) > 1
    }
    assert doubled == {}


def test_the_package_has_no_test_code_in_it() -> None:
    imported = {
        alias.name.partition(".")[0]
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"pytest", "hypothesis", "unittest"}
    assert Path(sys.modules["datadreamer_like"].__file__ or "").parent == PACKAGE
