"""Pages name only what there is: modules, classes, arguments, commands, files, extras and links."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from subjects import ROOMS, names_of, public

from datadreamer_like.models import GenerationOptions
from datadreamer_like.steps import Step
from datadreamer_like.steps.base.registration import registered

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = {page.relative_to(ROOT).as_posix(): page for page in (README, *sorted((ROOT / "docs").rglob("*.md")))}
every_page = pytest.mark.parametrize("name", PAGES)
# In code spans and no names of this package: operations of ONNX.
OF_OTHERS = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention"}


def text_of(name: str) -> str:
    return PAGES[name].read_text(encoding="utf-8")


def code_in(name: str) -> Iterator[ast.AST]:
    """The nodes of all Python on a page: its blocks, and the code spans that are expressions."""
    for block in re.findall(r"```python\n(.*?)```", text_of(name), flags=re.DOTALL):
        yield from ast.walk(ast.parse(block))
    for span in spans_in(name):
        try:
            yield from ast.walk(ast.parse(span, mode="eval"))
        except SyntaxError:
            continue


def spans_in(name: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text_of(name), flags=re.DOTALL))


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def public_names() -> dict[str, Any]:
    return {name: public(room, name) for room in ROOMS for name in names_of(room)}


@cache
def words_of_the_sources() -> set[str]:
    files = [*(ROOT / "datadreamer_like").rglob("*.py"), ROOT / "tests" / "contracts" / "ancestor.txt"]
    return {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}


@every_page
def test_its_code_parses_and_imports_what_exists(name: str) -> None:
    for node in code_in(name):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("datadreamer_like"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@every_page
def test_its_calls_take_the_arguments_that_they_show(name: str) -> None:
    for call in code_in(name):
        kind = public_names().get(getattr(call.func, "id", "")) if isinstance(call, ast.Call) else None
        if kind is None:
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}  # type: ignore[attr-defined]
        taken = inspect.signature(kind).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            assert {*given} <= {*taken}, f"{ast.unparse(call)} takes {', '.join(taken)}"
        if inspect.isclass(kind) and issubclass(kind, Step) and {"inputs", "args"} & {*given}:
            step: Any = registered(kind)
            names = {"args": {*step._arg_specs, *get_type_hints(GenerationOptions)}, "inputs": {*step._input_specs}}
            for of, known in names.items():
                shown = given.get(of)
                if isinstance(shown, ast.Dict) and not (of == "inputs" and step.takes_inputs):
                    keys = {key.value for key in shown.keys if isinstance(key, ast.Constant)}
                    assert keys <= known, f"{of} of {kind.__name__}: {keys - known}"


@every_page
def test_the_classes_and_files_that_it_names_exist(name: str) -> None:
    known = words_of_the_sources() | OF_OTHERS | {*re.findall(r"^class (\w+)", text_of(name), flags=re.MULTILINE)}
    for span in spans_in(name):
        for word in re.findall(r"\b[A-Z][a-z0-9]+[A-Z]\w+", re.sub(r'"[^"]*"', "", span)):
            assert word in known, f"{word} in `{span}`"
        if re.fullmatch(r"(\w[\w-]*/)+[\w-]+\.(pyi?|toml|json|md|txt)", span):
            places = [ROOT, ROOT / "datadreamer_like", PAGES[name].parent]
            assert any((place / span).exists() for place in places), span


@every_page
def test_the_commands_that_it_shows_exist(name: str) -> None:
    text, makefile = text_of(name), (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([\w-]+)", text, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for script, options in re.findall(r"python ((?:\w+/)+\w+\.py)([^\n`#]*)", text):
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in source, f"{script} {option}"


@every_page
def test_its_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(name)):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            page = PAGES[name].parent / file if file else PAGES[name]
            assert page.exists(), target
            assert not anchor or anchor in anchors_of(page), target


def test_every_extra_and_example_is_named() -> None:
    text = README.read_text(encoding="utf-8")
    (listed,) = re.findall(r"only the extras that you use: (.*?)\.", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*re.findall(r"`(\w+)`", listed)} == {*project["optional-dependencies"]} - {"all", "demo", "dev"}
    pages = "".join(map(text_of, PAGES))
    for example in (ROOT / "examples").glob("*.py"):
        assert f"examples/{example.name})" in pages, example.name
