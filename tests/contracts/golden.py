"""What the smallest `example()` of each public class gives: plain JSON, small enough to read when it changes."""

from __future__ import annotations

import inspect
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from stand_ins import stand_in
from subjects import ROOMS, Lengths, Lower, Parrot, classes_of, example_of, public

from datadreamer_like import DataDreamer
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import (
    LLM,
    Answer,
    Anthropic,
    Bedrock,
    CrossEncoderReranker,
    Embedder,
    HFTransformers,
    IndexedRetriever,
    LLMReranker,
    OpenAI,
    OpenAIAssistant,
    OpenAIResponses,
    ParallelEmbedder,
    ParallelLLM,
    ParallelTaskModel,
    Reranker,
    Retriever,
    TaskModel,
)
from datadreamer_like.models.model import Model
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.stages import Stage
from datadreamer_like.stages.compression import Compression
from datadreamer_like.steps import DataSource, PromptStep, Step, SuperStep
from datadreamer_like.trainers import Trainer

RECIPES = [kind for kind in classes_of("recipes") if not is_dataclass(kind)]  # those are what recipes take or give
BASES = {
    Step, SuperStep, PromptStep, LLM, Embedder, Retriever, IndexedRetriever, Reranker, TaskModel, Stage, Compression,
    Trainer,
}  # fmt: skip


def decides_a_result(kind: Any) -> bool:
    """Whether a public class must have an identity: by its base, or as a method or objective by what it can do."""
    if issubclass(kind, Step | Model | Stage | Trainer) or kind in RECIPES:
        return True
    return not getattr(kind, "_is_protocol", False) and any(hasattr(kind, name) for name in ("apply", "loss"))


def subjects() -> list[type]:
    """Every public class whose behaviour decides a result, except the bases that have none of their own."""
    return [
        kind
        for kind in classes_of(*(room for room in ROOMS if room != "formats"))
        if decides_a_result(kind) and kind not in BASES
    ]


class Given:
    """Small models for the examples, each made when it is first asked for."""

    def __init__(self, folder: Path, language_model: Path, classifier: Path, files: dict[str, Path]) -> None:
        self.folder = folder
        self.language_model = language_model
        self.classifier = classifier
        self.files = files
        self._trainers: dict[tuple[str, bool], Any] = {}

    @property
    def encoder(self) -> Path:
        """The classifier's encoder, with a mask token."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = self.folder / "encoder"
        if not folder.exists():
            tokenizer = AutoTokenizer.from_pretrained(self.classifier)
            tokenizer.mask_token = "[MASK]"
            AutoModelForSequenceClassification.from_pretrained(self.classifier).base_model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    @property
    def teacher(self) -> Any:
        """A classifier of cats and dogs."""
        return self.trainer_of("TrainHFClassifier").trained

    def trainer_of(self, name: str, encoder: bool = False) -> Any:
        """A trainer that has trained its example, on the encoder or on what it takes."""
        if (name, encoder) not in self._trainers:
            with DataDreamer(self.folder / f"trainer {len(self._trainers)}", verbose=False):
                made = self.trained(public("trainers", name), name, encoder=encoder)
            self._trainers[name, encoder] = made
        return self._trainers[name, encoder]

    def trained(self, kind: Any, name: str, encoder: bool = False, **more: Any) -> Any:
        options = self.with_columns(kind.example())
        takes = inspect.signature(kind.__init__).parameters
        encoder = encoder or kind.__name__ == "TrainHFMaskedLM"
        model = str(self.encoder if encoder else self.language_model)
        start = {"model_name": model} if "model_name" in takes else {}
        return kind(name, **start).train(**options, **more)

    def with_columns(self, options: dict[str, Any]) -> dict[str, Any]:
        """Turns lists of values into columns."""
        lists = {name: value for name, value in options.items() if is_values(value)}
        return options | {name: DataSource(name, {"value": value}).output["value"] for name, value in lists.items()}


def is_values(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str | int | float | list) for item in value)


def output(kind: Any, given: Given, folder: Path) -> Any:
    """What the class's example gives, as plain JSON."""
    for base, of in OUTPUTS.items():
        if issubclass(kind, base):
            return plain(of(kind, given, folder))
    of = of_recipe if kind in RECIPES else of_objective
    return plain(of_method(kind, given) if hasattr(kind, "apply") else of(kind, given, folder))


def of_step(kind: Any, given: Given, folder: Path) -> Any:
    with DataDreamer(":memory:", verbose=False):
        arguments = example_of(kind, folder)
        rows = list(kind("It", **arguments).output)
    asked = [model.asked for model in arguments.get("args", {}).values() if isinstance(model, Parrot)]
    return {"rows": rows, **({"asked": sorted(asked[0])} if asked else {})}


def of_llm(kind: Any, given: Given, folder: Path) -> Any:
    """Keys under which its answers are stored, and the requests of a provider that has an address."""
    from datadreamer_like.models.calls.llm_calls import LLMCalls
    from datadreamer_like.models.llms.generation import Generation

    os.environ.setdefault(f"{kind.__name__.upper()}_API_KEY", "none")  # nothing is sent to the provider
    os.environ.setdefault("HF_TOKEN", "none")
    with stand_in(kind.__name__.lower()):
        name = str(given.files.get(kind.__name__, "example/model"))
        llm = kind.example(OpenAI.example(name) if kind is ParallelLLM else name)
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "n": 2, "seed": 3}
    calls = LLMCalls(fingerprint(llm), Generation.from_options(options, llm.extra_options).sampling, llm.follow_up)
    keys, _ = calls.admit(["Say yes.", "Say yes.", [{"role": "user", "content": "Say no."}]])
    result: dict[str, Any] = {"keys": [key.hex() for key in keys]}
    if "base_url" in inspect.signature(kind.__init__).parameters:
        result["requests"] = requests_of(kind, folder, options)
    return result


def requests_of(kind: Any, folder: Path, options: dict[str, Any]) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from anthropic_server import AnthropicServer
    from bedrock_server import BedrockServer
    from flaky_server import FlakyServer
    from responses_server import ResponsesServer

    servers: dict[Any, type[FlakyServer]] = {
        Anthropic: AnthropicServer, Bedrock: BedrockServer, OpenAIAssistant: ResponsesServer,
        OpenAIResponses: ResponsesServer,
    }  # fmt: skip
    key: dict[str, Any] = {"api_key": "none"}
    if kind is Bedrock:
        key = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "aws_region_name": "us-east-1"}
    with servers.get(kind, FlakyServer)() as server:
        llm = kind("m", base_url=server.url, **key, system_prompt="Be brief.", cache_folder_path=folder)
        llm.run(["Say yes."], **options)
        return server.requests


def of_embedder(kind: Any, given: Given, folder: Path) -> Any:
    if "api_key" in inspect.signature(kind.__init__).parameters:
        return embedded_by(kind)
    name = str(given.files.get(kind.__name__, "example/model"))
    model = kind.example(Lengths() if kind is ParallelEmbedder else name)
    return [vector[:4] for vector in model.run(["a cat", "two dogs"])]


def embedded_by(kind: Any) -> Any:
    """Vectors, requests and identity of an embedder with an address."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from embedding_server import EmbeddingServer

    identity = fingerprint(kind("m", api_key="none", base_url="http://localhost:9/v1", dimensions=3))
    with EmbeddingServer() as server:
        vectors = kind("m", api_key="none", base_url=server.url, dimensions=3).run(["a cat", "two dogs"])
        return {"vectors": vectors, "requests": server.requests, "identity": identity}


def of_task_model(kind: Any, given: Given, folder: Path) -> Any:
    model = Lower() if kind is ParallelTaskModel else given.files.get(kind.__name__)
    return kind.example(model).run(["A cat", "the dog"])


def of_retriever(kind: Any, given: Given, folder: Path) -> Any:
    models: dict[Any, Callable[[], Any]] = {
        CrossEncoderReranker: lambda: given.files["CrossEncoderReranker"],
        LLMReranker: lambda: HFTransformers(given.language_model, device="cpu"),
    }
    return kind.example(models.get(kind, Lengths)()).run(["a bird"], k=2)


def of_trainer(kind: Any, given: Given, folder: Path) -> Any:
    if "base_url" in inspect.signature(kind.__init__).parameters:
        return sent_by(kind, given, folder)
    return given.trainer_of(kind.__name__).metrics


def answers_of(model: TrainedModel) -> Any:
    """What a trained model of any task gives for two texts: logits, or embeddings."""
    texts = ["the cat sat", "a dog ran to the mat"]
    if model.task == "text-classification":
        return model.logits(texts)
    if model.task == "feature-extraction":
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(model.path), device="cpu").encode(texts)
    import torch

    batch = model.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()


def answers_after_loading(folders: Sequence[str]) -> list[Any]:
    """What another process finds in the folders of trained models."""
    return [answers_of(TrainedModel.load(folder)) for folder in folders]


def sent_by(kind: Any, given: Given, folder: Path) -> Any:
    """What a server receives of a trainer whose model is there."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))
    from fine_tuning_server import FineTuningServer

    with FineTuningServer() as server, DataDreamer(folder, verbose=False):
        trainer = kind("It", "m", system_prompt="Be brief.", api_key="none", base_url=server.url)
        trainer.train(**given.with_columns(kind.example()))
        return {"jobs": server.created, "files": [content.decode() for content in server.contents.values()]}


def of_stage(kind: Any, given: Given, folder: Path) -> Any:
    example = kind.example(given.teacher)
    with DataDreamer(folder, verbose=False):
        stage = kind("It", **given.with_columns(example))
        if hasattr(stage, "predict"):
            return stage.predict(["a cat", "the dog"]).probabilities
        return [row["accuracy"] for row in stage.rows]


def of_recipe(kind: Any, given: Given, folder: Path) -> Any:
    """The metrics of its students; of a recipe with an LLM its rows, and of each iteration what it counted."""
    trainer = partial(public("trainers", "TrainHFClassifier"), model_name=str(given.language_model))
    takes = inspect.signature(kind.__init__).parameters
    if "llm" in takes:
        return of_recipe_with_llm(kind, given, folder, "trainer" in takes)
    more = {"teacher": given.teacher} if kind.__name__ == "DistillationLoop" else {}
    with DataDreamer(folder, verbose=False):
        recipe = kind("It", trainer, **more, **given.with_columns(kind.example() | {"epochs": 1}))
        return [student.metrics for student in recipe.students]


def of_recipe_with_llm(kind: Any, given: Given, folder: Path, trains: bool) -> Any:
    """The rows that it makes, by an LLM that repeats a line of its prompt, or counts its letters as a judge."""
    llm: Any = Scribe()
    takes = inspect.signature(kind.__init__).parameters
    start: dict[str, Any] = {"llm": llm}
    if trains:
        name = {"SelfRewarding": "TrainHFDPO", "SynthIE": "TrainHFFineTune"}.get(kind.__name__, "TrainLinearClassifier")
        start["trainer"] = public("trainers", name)
        if name.startswith("TrainHF"):
            start |= {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3}
    if kind.__name__ == "SynthIE":
        start["trainer"] = partial(start["trainer"], model_name=str(given.language_model))
    if kind.__name__ == "SelfRewarding":
        start |= {"model": str(given.language_model), "judge": llm, "llm": lambda model: llm}
    with DataDreamer(folder, verbose=False):
        example = kind.example()
        columns = {name: value for name, value in example.items() if "Column" in str(takes[name].annotation)}
        recipe = kind("It", **start, **example | given.with_columns(columns))
        return recipe.iterations if kind.__name__ == "SelfRewarding" else list(recipe.rows.output)


class Scribe(Parrot):
    """The LLM of a recipe; of several answers, each is longer than the one before."""

    def answer_batch(self, requests: Sequence[Any]) -> list[Answer]:
        return [
            Answer([recipe_answer(request.prompt) + "!" * place for place in range(request.sampling.n)])
            for request in requests
        ]


def recipe_answer(prompt: str) -> str:
    """What the LLM of a recipe says: fit for each of their prompts, and made of the prompt."""
    last = prompt.splitlines()[-1]
    if prompt.startswith("List"):
        which = prompt.split("about ")[-1].split(".")[0]
        return f"1. {which} one\n2. {which} two"
    if prompt.startswith("Below"):
        return "Task 3: Name five birds that cannot fly.\nTask 4: Say if a letter is formal."
    if prompt.startswith("Is this"):
        return "Yes." if "Say" in prompt else "No."
    if prompt.startswith("Write an example"):
        return "Class label: formal\nInput: Dear Sir" if "class labels" in prompt else "Input: (none)\nOutput: Emus."
    if prompt.startswith("Write one new example"):
        label = "cat" if 'output is "cat"' in prompt else "dog"
        return f" a {label} {zlib.crc32(prompt.encode()) % 97}\nOutput: {label}"
    if prompt.startswith("Write one or two"):
        return " and ".join(prompt.split("Facts:\n")[-1].split("\nText:")[0].replace(" | ", " ").splitlines())
    if prompt.startswith("Review"):
        return f"Score: {len(prompt) % 6}"
    return f"{last} {sum(map(ord, prompt)) % 97}"


def of_method(kind: Any, given: Given) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from datadreamer_like.kernels import int8

    model = AutoModelForSequenceClassification.from_pretrained(given.classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.classifier)
    texts = ["the cat sat", "the dog sat on the mat"]
    with torch.no_grad():  # weights as large as trained ones: with those of a fresh model all logits are near zero
        for weight in model.parameters():
            weight.mul_(5.0 if weight.dim() > 1 else 1.0)
    method = kind.example()
    if getattr(kind, "changes_tokenizer", False):
        model, tokenizer = method.apply(model, texts, tokenizer=tokenizer)
        batch = dict(tokenizer(texts, return_tensors="pt", padding=True))
    else:
        batch = dict(tokenizer(texts, return_tensors="pt", padding=True))
        model = method.apply(model, [{**batch, "labels": torch.tensor([0, 1])}])
    # Processors round activations to 7 or 8 bits; exact products are the same on all of them.
    with torch.no_grad(), patch.object(int8, "fastest_engine", lambda: None):
        return model.eval()(**batch).logits


def of_objective(kind: Any, given: Given, folder: Path) -> Any:
    """How a model that minimises it fares: the first that it fits of a classifier, a language model and an encoder."""
    of_attention = "projections" in kind.example(given.teacher).wants
    fits = kind.example(given.teacher).fits or {"classification"}
    trainers = {"classification": "TrainHFClassifier", "generation": "TrainHFFineTune", "masked": "TrainHFMaskedLM"}
    trainer = next(name for task, name in trainers.items() if task in fits)
    objective = kind.example(given.trainer_of(trainer, of_attention).trained)
    with DataDreamer(folder, verbose=False):
        return given.trained(public("trainers", trainer), "It", encoder=of_attention, objective=objective).metrics


OUTPUTS: dict[type, Callable[[Any, Given, Path], Any]] = {
    Step: of_step,
    LLM: of_llm,
    Embedder: of_embedder,
    TaskModel: of_task_model,
    Retriever: of_retriever,
    Trainer: of_trainer,
    Stage: of_stage,
}


def plain(value: Any) -> Any:
    """Turns a value into JSON with floats of five digits."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return float(f"{value:.5g}") if isinstance(value, float) else value


def difference(expected: Any, found: Any, where: str = "") -> str | None:
    """The first place where two outputs differ by more than another processor's arithmetic explains."""
    if isinstance(expected, dict) and isinstance(found, dict) and set(expected) == set(found):
        pairs = [(expected[key], found[key], f"{where}[{key!r}]") for key in expected]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(a, b, f"{where}[{index}]") for index, (a, b) in enumerate(zip(expected, found, strict=True))]
    elif isinstance(expected, float) and isinstance(found, int | float):
        return None if abs(expected - found) <= 0.002 + 0.002 * abs(expected) else f"{where}: {expected} → {found}"
    else:
        return None if expected == found else f"{where}: {expected!r} → {found!r}"
    return next((said for a, b, place in pairs if (said := difference(a, b, place))), None)
