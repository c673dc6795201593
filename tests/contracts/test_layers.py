"""What import-linter cannot see: the rooms' stubs, which it does not read, and what an import really loads."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "datadreamer_like"
ROOMS = sorted(stub.parent.name for stub in PACKAGE.glob("*/__init__.pyi"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEACHES_TRANSFORMERS = {"compression", "formats", "pruning", "quantization"}
"""Rooms whose import lets `from_pretrained` read compressed models, so that they may load torch and transformers."""
HEAVY = SETTINGS["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def re_exports(stub: Path) -> dict[str, Path]:
    """The names that a stub takes from the files beside it, each with its file."""
    return {
        alias.asname or alias.name: stub.parent / f"{node.module.replace('.', '/')}.py"
        for node in parse(stub).body
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 1
        for alias in node.names
    }


def names_defined(path: Path) -> set[str]:
    """The names that a module binds at its top level, imports and branches included, without running it."""
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def names_called(path: Path) -> set[str]:
    """The last part of every name that a module calls."""
    calls = (node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call))
    return {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in calls}


def private_methods() -> dict[str, tuple[Path, set[str], set[str]]]:
    """Each class of the package with its file, the names of its bases, and its methods with an underscore."""
    found: dict[str, tuple[Path, set[str], set[str]]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                own = {item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)}
                found[node.name] = file, bases, {name for name in own if re.match("_[^_]", name)}
    return found


def test_no_class_overrides_a_private_method_of_a_class_in_another_file():
    classes = private_methods()
    wrong = []
    for name, (file, bases, own) in classes.items():
        waiting, seen = list(bases), set()
        while waiting:
            base = waiting.pop()
            if base in classes and base not in seen:
                seen.add(base)
                waiting.extend(classes[base][1])
                if classes[base][0] != file:
                    wrong += [f"{name}.{method} ({base})" for method in own & classes[base][2] - {"_apply"}]
    assert not wrong, "what a subclass overrides is public and documented (torch's own `_apply` aside)"


def test_the_house_has_the_rooms_that_it_was_asked_for():
    assert {"steps", "models", "trainers", "kernels"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_stub_takes_names_from_its_own_files_only(room):
    stub = PACKAGE / room / "__init__.pyi"
    for node in ast.walk(parse(stub)):
        assert not isinstance(node, ast.Import), f"line {node.lineno} imports another module"
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"line {node.lineno} takes names from outside the room"
            assert node.module, f"line {node.lineno} names no file"


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_exists_where_the_stub_says(room):
    stub = PACKAGE / room / "__init__.pyi"
    exports = re_exports(stub)
    for name, file in exports.items():
        assert file.exists(), f"{name}: there is no {file.name} in {room}"
        assert name in names_defined(file), f"{file.relative_to(ROOT)} defines no {name}"


def test_every_top_level_name_is_public_in_the_room_that_it_comes_from():
    stub = PACKAGE / "__init__.pyi"
    modules = [node for node in parse(stub).body if isinstance(node, ast.ImportFrom)]
    assert modules
    for node in modules:
        assert node.level == 1
        for alias in node.names:
            if node.module is None:
                assert (PACKAGE / alias.name).is_dir() or (PACKAGE / f"{alias.name}.py").exists(), alias.name
            elif node.module in ROOMS:
                assert alias.name in re_exports(PACKAGE / node.module / "__init__.pyi"), alias.name
            else:
                assert alias.name in names_defined(PACKAGE / f"{node.module}.py"), alias.name


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_its_names_lazily(room):
    assert "attach_stub" in names_called(PACKAGE / room / "__init__.py")


def test_importing_the_package_and_its_rooms_imports_nothing_heavy():
    rooms = [f"datadreamer_like.{room}" for room in ROOMS if room not in TEACHES_TRANSFORMERS]
    modules = ", ".join(["datadreamer_like", "datadreamer_like.errors", *rooms])
    script = f"import sys; before = set(sys.modules); import {modules}; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert {name.split(".")[0] for name in loaded.split()} & {*HEAVY, "numpy", "pyarrow"} == set()


def test_no_two_files_import_each_other():
    """Imports for type checking and inside functions count too."""
    graph = grimp.build_graph("datadreamer_like", cache_dir=None)
    links = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    waiting = dict(links)
    while removable := [module for module, imported in waiting.items() if not imported & waiting.keys()]:
        for module in removable:
            del waiting[module]
    # What is left is in a circle, or imports a module that is.
    assert sorted(waiting) == []


def test_one_prompt_passes_through_few_files():
    script = "import count_files; count_files.ROWS = 1_500; raise SystemExit(count_files.main())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "scripts")
    assert done.returncode == 0, done.stdout + done.stderr
