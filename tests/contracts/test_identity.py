"""Identities: frozen, one for each class, whatever file it is in, and raised when a class's results change.

Also that what a trainer saves is what it trained.

`ids.json` and `golden.json` hold what was decided. `python tests/contracts/freeze.py` writes them anew, so that what
changed shows in the commit.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import Given, answers_after_loading, answers_of, difference, output, subjects
from warm import CONTEXT

import datadreamer_like
from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_id, class_part
from datadreamer_like.models import LLM
from datadreamer_like.steps import Prompt, Step
from datadreamer_like.trainers import Trainer

HERE = Path(__file__).parent
IDS, GOLDEN = HERE / "ids.json", HERE / "golden.json"
FREEZE = os.environ.get("DATADREAMER_LIKE_FREEZE") == "1"
HOW = "python tests/contracts/freeze.py"
CLASSES = subjects()
TRAINERS = [
    kind
    for kind in CLASSES
    if issubclass(kind, Trainer) and "base_url" not in inspect.signature(kind.__init__).parameters
]


def name_of(kind: type) -> str:
    return class_id(kind).partition("@")[0]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, tiny_llama: Path) -> Given:
    files = {
        "HFTransformers": Path("example/model"),
        "LlamaCPP": request.getfixturevalue("smollm_gguf"),
        "CTransformers": request.getfixturevalue("smollm_gguf"),
        "Petals": Path("example/model"),
        "VLLM": Path("example/model"),
        "SentenceTransformersEmbedder": request.getfixturevalue("minilm_path"),
    }
    classifier = request.getfixturevalue("small_classifier")
    files["HFClassificationTaskModel"] = classifier
    files["CrossEncoderReranker"] = request.getfixturevalue("small_cross_encoder")
    return Given(tmp_path_factory.mktemp("golden"), tiny_llama, classifier, files)


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Any]]:
    """What was decided, by name; while freezing, what is found."""
    if not FREEZE:
        yield json.loads(GOLDEN.read_text(encoding="utf-8"))
        return
    found: dict[str, Any] = {}
    yield found
    lines = [f"{json.dumps(name)}: {json.dumps(found[name], ensure_ascii=False)}" for name in sorted(found)]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def test_ids_are_what_was_decided() -> None:
    found = sorted(class_id(kind) for kind in CLASSES)
    if FREEZE:
        IDS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    decided = json.loads(IDS.read_text(encoding="utf-8"))
    lost, new = sorted({*decided} - {*found}), sorted({*found} - {*decided})
    assert found == decided, (
        f"new: {new}, gone: {lost}. Users pay again for every result of a class whose id changes. A new class, or a "
        f"raised result_version: run `{HOW}` and commit what it writes. Anything else: undo it."
    )


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_example_gives_what_it_gave(kind: Any, given: Given, golden: dict[str, Any], tmp_path: Path) -> None:
    assert hasattr(kind, "result_version"), f"{kind.__name__} needs `result_version: ClassVar[int] = 1`"
    assert hasattr(kind, "example"), (
        f"{kind.__name__} needs a classmethod example(); its base class says what it returns"
    )
    found, name = {"version": kind.result_version, "output": output(kind, given, tmp_path)}, name_of(kind)
    if FREEZE:
        golden[name] = found
        return
    assert name in golden, f"{name} is new: run `{HOW}` and commit what it writes"
    decided = golden[name]
    assert decided["version"] == found["version"], f"the result_version of {name} changed: run `{HOW}`"
    changed = difference(decided["output"], found["output"])
    assert changed is None, (
        f"{name} gives another result than it did, and its result_version is still {found['version']}: {changed}. If "
        f"that is meant, raise result_version in the class and run `{HOW}`: users' results are then made again. "
        "If not, it is a bug."
    )


@pytest.fixture(scope="module")
def loaded(given: Given) -> dict[str, Any]:
    """What all trained models answer in one process that has loaded none of them before."""
    folders = {kind.__name__: str(given.trainer_of(kind.__name__).path) for kind in TRAINERS}
    with ProcessPoolExecutor(1, CONTEXT) as processes:
        found = processes.submit(answers_after_loading, list(folders.values())).result(timeout=200)
    return dict(zip(folders, found, strict=True))


@pytest.mark.parametrize("kind", TRAINERS, ids=lambda kind: kind.__name__)
def test_a_trained_model_answers_the_same_when_another_process_loads_it(
    kind: Any, given: Given, loaded: dict[str, Any]
) -> None:
    expected = answers_of(given.trainer_of(kind.__name__).trained)
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(loaded[kind.__name__], expected)


def test_nothing_is_frozen_that_is_gone() -> None:
    assert set(json.loads(GOLDEN.read_text(encoding="utf-8"))) == {name_of(kind) for kind in CLASSES}, f"run `{HOW}`"


def test_no_two_classes_of_the_package_have_one_id() -> None:
    names = [module.name for module in pkgutil.walk_packages(datadreamer_like.__path__, "datadreamer_like.")]
    for name in names:
        for kind in vars(importlib.import_module(name)).values():
            if inspect.isclass(kind) and kind.__module__ == name:
                class_id(kind)  # raises where another class has it


def made_in(module: str, name: str, base: type = Step, **members: Any) -> type:
    return type(name, (base,), {"__module__": module, "__qualname__": name, **members})


def test_an_id_is_room_name_and_version_wherever_in_the_room_the_class_is() -> None:
    assert class_id(Prompt).startswith("steps.Prompt@")
    assert class_id(made_in("datadreamer_like.steps.here.now", "Moved")) == "steps.Moved@1"
    assert class_id(made_in("datadreamer_like.models.x", "Moved", LLM, result_version=3)) == "models.Moved@3"


def test_a_plugins_class_is_named_by_its_package_and_what_it_extends(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own module stands for an installed package that has a class of ours.
    assert class_id(made_in("pytest.a", "Own", result_version=2)) == "steps.Step@1/pytest.Own@2"
    assert class_id(made_in("pytest.a", "Bare")) == f"steps.Step@1/pytest.a.Bare@{pytest.__version__}"


def test_two_installed_classes_of_one_id_are_refused_when_they_are_used() -> None:
    first, second = (made_in(f"datadreamer_like.steps.{file}", "Twice") for file in "ab")
    fingerprint(first)
    with pytest.raises(
        DefinitionError, match=r'Two classes have the id "steps.Twice": one in .*a, one in .*b\. .*Rename'
    ):
        fingerprint([second])
    plugins = [made_in(f"pytest.{file}", "Twice", result_version=1) for file in "ab"]
    with pytest.raises(DefinitionError, match=r"pytest\.Twice"):
        list(map(class_part, plugins))
    assert class_id(first) == class_id(first)


def test_a_version_that_is_not_a_whole_number_is_refused() -> None:
    with pytest.raises(DefinitionError, match="result_version is '2'; it must be an integer"):
        class_id(made_in("datadreamer_like.steps.c", "Wrong", result_version="2"))


def test_a_scripts_own_class_is_its_code_and_the_id_of_what_it_extends(monkeypatch: pytest.MonkeyPatch) -> None:
    def shout(loud: bool) -> type:
        class Shout(Prompt):
            def run(self) -> Any:
                return ["!" if loud else "."]

        return Shout

    before = class_id(shout(True))
    assert before.startswith("script.")
    assert class_id(shout(True)) == before != class_id(shout(False))
    monkeypatch.setattr(Prompt, "result_version", 99)
    assert class_id(shout(True)) != before
    assert set(class_part(Prompt)) == {"class"}
    assert set(class_part(shout(True))) == {"code"}


def test_a_function_that_uses_a_helper_of_the_package_knows_no_file() -> None:
    def helper_in(file: str) -> Any:
        names: dict[str, Any] = {"__name__": file}
        exec("def make(n):\n    def inner(x): return x + n\n    return inner\ndef helper(x): return x", names)
        return names

    def closing_over(names: dict[str, Any], n: int) -> Any:
        helper, inner = names["helper"], names["make"](n)
        return lambda x: helper(inner(x))

    here, there = helper_in("datadreamer_like.steps.a"), helper_in("datadreamer_like.steps.b.c")
    assert fingerprint(closing_over(here, 1)) == fingerprint(closing_over(there, 1))
    assert fingerprint(closing_over(here, 1)) != fingerprint(closing_over(here, 2))
    assert fingerprint(closing_over(here, 1)) != fingerprint(closing_over(helper_in("datadreamer_like.models.a"), 1))
