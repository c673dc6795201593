"""Every model: which extra it needs, what its fingerprint and its pickle hold, and what it says of itself."""

from __future__ import annotations

import inspect
import json
import pickle
import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from stand_ins import stand_in
from subjects import PACKAGE, ROOMS, classes_of, names_of

from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import (
    LLM,
    Embedder,
    HybridRetriever,
    IndexedRetriever,
    LLMReranker,
    ParallelEmbedder,
    ParallelLLM,
    ParallelRetriever,
    ParallelTaskModel,
    Reranker,
    Retriever,
    TaskModel,
)

SETTINGS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = SETTINGS["project"]["optional-dependencies"]
LLMS = [kind for kind in classes_of("models", below=LLM) if kind not in (LLM, ParallelLLM)]
NOT_TASK_MODELS = (TaskModel, Embedder, ParallelEmbedder, ParallelTaskModel)
EMBEDDERS = [kind for kind in classes_of("models", below=TaskModel) if kind not in NOT_TASK_MODELS]
# Those that need no extra of their own, and bases.
OF_OTHERS = (Retriever, IndexedRetriever, Reranker, HybridRetriever, ParallelRetriever, LLMReranker)
RETRIEVERS = [kind for kind in classes_of("models", below=Retriever) if kind not in OF_OTHERS]
SECRET = "sk-S3cr3tK3y-0123456789abcdef"

# Names under which the distributions of the extras are imported, where they differ.
MODULES = {"scikit-learn": "sklearn", "faiss-cpu": "faiss", "sentence-transformers": "sentence_transformers"}
LIGHT = {re.split(r"[><=\[ ;]", requirement)[0] for requirement in SETTINGS["project"]["dependencies"]}


@pytest.fixture(scope="module")
def local(request: pytest.FixtureRequest) -> dict[str, str]:
    """A model for each class that wants one on this machine."""
    return {
        "HFTransformers": str(request.getfixturevalue("tiny_causal_lm")),
        "LlamaCPP": str(request.getfixturevalue("smollm_gguf")),
        "CTransformers": str(request.getfixturevalue("smollm_gguf")),
        "Petals": str(request.getfixturevalue("tiny_causal_lm")),
        "VLLM": str(request.getfixturevalue("tiny_causal_lm")),
        "SentenceTransformersEmbedder": str(request.getfixturevalue("minilm_path")),
    }


# What else some models need, and the names of keys.
NEEDED: dict[str, dict[str, str]] = {
    "Azure": {"base_url": "https://example.openai.azure.com"},
    "Bedrock": {"aws_access_key_id": "AKIA", "aws_region_name": "us-east-1"},
    "VertexAI": {"vertex_project": "p"},
}
KEYS = ("api_key", "token", "aws_secret_access_key")


def example(kind: Any, local: dict[str, str], key: str = SECRET) -> Any:
    """Makes a model with its name and, where it takes one, a key."""
    parameters = inspect.signature(kind.__init__).parameters
    keys = {name: key for name in KEYS if name in parameters}
    with stand_in(kind.__name__.lower()):
        return kind(local.get(kind.__name__, "m"), **NEEDED.get(kind.__name__, {}), **keys)


WITHOUT_EXTRAS = """
import importlib, inspect, json, sys

class Without:
    # Finds what the finder inside it finds, but none of the packages that an extra brings.
    def __init__(self, finder, absent):
        self.finder, self.absent = finder, absent
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.absent else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

absent, rooms = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.meta_path[:] = [Without(finder, absent) for finder in sys.meta_path]

import datadreamer_like.models
from datadreamer_like.errors import MissingExtra

found = {}
values = {"model_name": "nobody/nothing", "endpoint": "nobody/nothing", "texts": ["a text"], "embedder": None}
values["retriever"] = datadreamer_like.models.Retriever(["a text"])
for room, names in rooms.items():
    for name in names:
        try:
            thing = getattr(importlib.import_module(f"datadreamer_like.{room}"), name)
            if inspect.isclass(thing) and room == "models" and hasattr(thing, "run"):
                parameters = inspect.signature(thing.__init__).parameters.values()
                required = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
                many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
                if required - {"self"} <= values.keys() and not many:
                    thing(**{name: values[name] for name in required - {"self"}})
            found[f"{room}.{name}"] = "works"
        except MissingExtra as error:
            found[f"{room}.{name}"] = str(error)
        except Exception as error:
            found[f"{room}.{name}"] = f"not ours: {type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def without_extras() -> dict[str, str]:
    """What each public name says in a process where only the light core is installed."""
    names = {re.split(r"[><=\[ ;]", requirement)[0] for extra in EXTRAS.values() for requirement in extra}
    absent = sorted({MODULES.get(name, name.replace("-", "_")) for name in names - LIGHT} - {"datadreamer_like"})
    assert {"torch", "transformers", "openai", "xllamacpp", "faiss"} <= set(absent)
    rooms = {room: names_of(room) for room in ROOMS}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(absent), json.dumps(rooms)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [*LLMS, *EMBEDDERS, *RETRIEVERS])
def test_a_model_without_its_extra_names_the_pip_command(without_extras: dict[str, str], kind: type) -> None:
    said = without_extras[f"models.{kind.__name__}"]
    command = re.search(r'pip install "datadreamer-like\[(\w+)\]"', said)
    assert command is not None, said
    assert command.group(1) in EXTRAS
    assert kind.__name__ in said


def test_without_extras_every_public_name_works_or_names_the_pip_command(without_extras: dict[str, str]) -> None:
    wrong = {name: said for name, said in without_extras.items() if said != "works" and "pip install" not in said}
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong.items())
    working = {name for name, said in without_extras.items() if said == "works"}
    assert {"graph.DataDreamer", "steps.DataSource", "steps.Prompt", "models.LLM"} <= working


@pytest.mark.parametrize("kind", [*LLMS, *EMBEDDERS])
def test_a_model_survives_a_pickle_without_its_key_and_is_the_same_model(kind: type, local: dict[str, str]) -> None:
    model = example(kind, local)
    content = pickle.dumps(model)
    assert SECRET.encode() not in content
    again = pickle.loads(content)
    assert fingerprint(again) == fingerprint(model)
    assert again.model_name == model.model_name


@pytest.mark.parametrize("kind", [*LLMS, *EMBEDDERS])
def test_a_models_identity_and_name_hold_no_secret_and_no_key_changes_them(kind: type, local: dict[str, str]) -> None:
    model = example(kind, local)
    for shown in (model.identity(), model.__fingerprint__(), model.display_name, repr(model), str(model)):
        assert SECRET not in repr(shown)
    assert fingerprint(example(kind, local, key="other")) == fingerprint(model)


@pytest.mark.parametrize("kind", LLMS)
def test_an_llm_implements_one_engine_method(kind: type[LLM]) -> None:
    own = [name for name in ("answer", "answer_batch") if getattr(kind, name) is not getattr(LLM, name)]
    assert len(own) == 1


@pytest.mark.parametrize("kind", [*LLMS, *EMBEDDERS])
def test_a_model_is_named_in_messages(kind: type, local: dict[str, str]) -> None:
    model = example(kind, local)
    assert kind.__name__ in model.display_name
    assert model.version > 0
    assert model.model_card is None or str(model.model_card).startswith("https://")


def test_every_kind_of_model_is_there() -> None:
    assert {"OpenAI", "LlamaCPP", "HFTransformers"} <= {kind.__name__ for kind in LLMS}
    assert "SentenceTransformersEmbedder" in {kind.__name__ for kind in EMBEDDERS}
    assert "EmbeddingRetriever" in {kind.__name__ for kind in RETRIEVERS}
