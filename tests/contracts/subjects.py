"""Where the contracts find what they hold for: the package's own stubs, so that nothing new has to be listed here.

Also the fake models that stand in for what an `example()` leaves to its reader.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datadreamer_like.models import LLM, Answer, Embedder, Retriever, TaskModel
from datadreamer_like.models.llms.scoring import Scored
from datadreamer_like.models.trained.predictions import Answers, Predictions
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.steps import DataSource, PromptStep, Step, SuperStep
from datadreamer_like.steps.base.registration import registered
from datadreamer_like.steps.labelling.judges import JUDGES
from datadreamer_like.steps.labelling.predict_or_abstain import CLASSIFIER

PACKAGE = Path(__file__).resolve().parents[2] / "datadreamer_like"
ROOMS = sorted(stub.parent.name for stub in PACKAGE.glob("*/__init__.pyi"))


def names_of(room: str) -> list[str]:
    """The public names of a room, as its stub lists them."""
    stub = ast.parse((PACKAGE / room / "__init__.pyi").read_text(encoding="utf-8"))
    return sorted(alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names)


def public(room: str, name: str) -> Any:
    return getattr(importlib.import_module(f"datadreamer_like.{room}"), name)


def classes_of(*rooms: str, below: type | None = None) -> list[type]:
    """The public classes of rooms that can be made: no abstract ones, and each once, whatever its other names."""
    found = dict.fromkeys(public(room, name) for room in rooms for name in names_of(room))
    return [
        thing
        for thing in found
        if inspect.isclass(thing) and not inspect.isabstract(thing) and (below is None or issubclass(thing, below))
    ]


ALL_STEPS: list[Any] = [kind for kind in classes_of("steps", below=Step) if kind not in (Step, SuperStep, PromptStep)]
"""The steps, without their bases."""


class Parrot(LLM):
    """Says yes, gives seven points, and prefers the first; asked for JSON, it gives an input and an output."""

    model_name = "parrot"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def answer_batch(self, requests: Sequence[Any]) -> list[Answer]:
        self.asked.extend(str(request.prompt) for request in requests)
        return [Answer([self.reply(str(request.prompt))] * request.sampling.n) for request in requests]

    def reply(self, prompt: str) -> str:
        return '{"input": "a", "output": "b"}' if '{"input": "...",' in prompt else "Yes. 7. Response A"

    def score_batch(self, requests: Sequence[Any]) -> list[Scored]:
        self.asked.extend(str(request.prompt) for request in requests)
        return [
            Scored(tuple(-1.0 - place for place, _ in enumerate(each.continuations)), (1,) * 2) for each in requests
        ]

    def identity(self) -> dict[str, Any]:
        return {}


class Lengths(Embedder):
    """Embeds a text as its number of characters and of words."""

    def __init__(self) -> None:
        super().__init__("lengths")

    def compute(self, texts: Sequence[str], **asks: Any) -> Any:
        return np.array([[len(text), len(text.split())] for text in texts], dtype=np.float32)

    def count_tokens(self, value: str) -> int:
        return len(value)

    @property
    def model_max_length(self) -> int:
        return 1_000

    @property
    def dims(self) -> int:
        return 2


class Lower(TaskModel[str]):
    """Gives each text in lower case."""

    model_name = "lower"

    def compute(self, texts: Sequence[str], **asks: Any) -> list[str]:
        return [text.lower() for text in texts]

    def count_tokens(self, value: str) -> int:
        return len(value)

    @property
    def model_max_length(self) -> int:
        return 1_000


class Sure(TrainedModel):
    """Finds texts of up to 10 characters short, and is sure of those; stands for any classifier with a threshold."""

    is_multi_label = False

    def __init__(self) -> None:
        super().__init__("sure")

    def predict_or_abstain(self, texts: Sequence[str], fallback: Any = None, *, batch_size: int = 32) -> Answers:
        sure = np.array([len(text) <= 10 for text in texts])
        chances = np.where(sure[:, None], [[0.9, 0.1]], [[0.5, 0.5]])
        labels = ["short" if each else None for each in sure]
        return Answers(labels, sure, Predictions(["short", "long"], ["short"] * len(texts), chances))


class First(Retriever):
    """Finds the first texts, whatever is asked."""

    def search(self, queries: Sequence[str], k: int, *args: Any, **kwargs: Any) -> Any:
        return [(list(range(k)), [1.0] * k) for _ in queries]


MODELS: dict[Any, Any] = {
    LLM: Parrot,
    JUDGES: lambda: [Parrot()],
    Embedder: Lengths,
    TaskModel: Lower,
    CLASSIFIER: Sure,
    Retriever: lambda: First(["one", "two"]),
}
"""What makes a model of each kind that a step may ask for."""


def required_models(kind: type[Step]) -> dict[str, Any]:
    """A model for each argument that must be one."""
    arguments = registered(kind)._arg_specs.items()
    return {name: MODELS[spec.type]() for name, spec in arguments if spec.required and spec.type in MODELS}


def example_of(kind: Any, folder: Path) -> dict[str, Any]:
    """What a step's or source's constructor takes beside the name; columns are those of a new step."""
    given = dict(kind.example(folder))
    if "args" not in given:
        return given
    given["args"] = {**required_models(kind), **given["args"]}
    rows = DataSource("Rows", data=given["inputs"]) if given["inputs"] else None
    given["inputs"] = {name: rows.output[name] for name in given["inputs"]} if rows is not None else {}
    return given
