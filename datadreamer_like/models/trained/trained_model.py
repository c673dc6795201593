"""A model in a folder: the result and the starting point of trainers and stages, and a teacher."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit, StorageError, did_you_mean
from datadreamer_like.graph import Card
from datadreamer_like.graph.card import CARD_NAME
from datadreamer_like.storage.exports import local_path, new_export
from datadreamer_like.storage.folders import explained

from ..model import free_memory
from .hf_source import forget_gguf, hf_source, loading
from .model_facts import Task, count_parameters, task_of
from .model_files import files_identity, model_files, model_folder, read_card, system_errors, write_card

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from datadreamer_like.graph import Node


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions.

    Attributes:
        classes: The classes, in the order of the probabilities.
        labels: The most likely class of each text; for a multi-label model, the list of classes above 0.5.
        probabilities: Float array [texts, classes]; rows add up to 1, except for a multi-label model.
    """

    classes: list[str]
    labels: list[Any]
    probabilities: np.ndarray[Any, np.dtype[np.float32]]

    def __len__(self) -> int:
        return len(self.labels)


class TrainedModel:
    """A trained model with its tokenizer and origin, loaded lazily from its folder.

    Any folder that transformers can load works; `TrainedModel.load(folder)` loads models saved or exported by trainers
    and stages in any process, pruned and quantized ones too. It is pickled without the weights.

    Args:
        path: Folder of the model, its id on the Hub, or a `.gguf` file of a language model, whose weights are unpacked.
        device, dtype: To load the model to and in, such as "cuda" and "bfloat16"; None for the CPU and the saved one.
        node: The trainer or stage that made it, which decides its fingerprint and card.

    Example:
        >>> student = TrainedModel.load("output/student")  # doctest: +SKIP
        >>> student.predict(["Parses command lines."]).labels  # doctest: +SKIP
        ['cli']
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        node: Node | None = None,
    ) -> None:
        self.path = str(path)
        self.device = device
        self.dtype = dtype
        self.node = node
        self._fingerprint = None if node is None else node.result_fingerprint

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> TrainedModel:
        """Opens a saved or exported model; raises `StorageError` if the folder has none."""
        found = model_folder(Path(folder))
        if not (found / "config.json").is_file():
            raise StorageError(
                f"{folder} is not the folder of a saved model: it has no config.json. Pass the folder that was "
                "exported, or a trainer's or stage's `path`."
            )
        return cls(found, device=device, dtype=dtype)

    @classmethod
    def save(
        cls,
        model: PreTrainedModel | nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        folder: str | Path,
        card: Card | None = None,
    ) -> TrainedModel:
        """Saves a transformers model so that this class and transformers' own `from_pretrained` load it.

        A compressed model keeps its layout; the card is saved with its lineage.
        """
        folder = Path(folder)
        with explained("Saving a model", folder), system_errors():
            cast("PreTrainedModel", model).save_pretrained(str(folder))
            if tokenizer is not None:
                tokenizer.save_pretrained(str(folder))
            if card is not None:
                write_card(folder, card)
        return cls(folder)

    # What it is

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's transformers config."""
        from transformers import AutoConfig

        source = hf_source(self.path)
        with loading(source):
            return cast("PretrainedConfig", AutoConfig.from_pretrained(source.name, **source.options))

    @property
    def task(self) -> Task:
        """The model's task, as the Hub names it."""
        return task_of(self.config)

    @property
    def label2id(self) -> dict[str, int]:
        """A classifier's classes and their positions."""
        return {label: index for index, label in enumerate(self.labels)}

    @property
    def labels(self) -> list[str]:
        """A classifier's classes, in the order of its logits; raises `MethodMisfit` for other models."""
        if self.task != "text-classification":
            generates = self.task in ("text-generation", "text2text-generation")
            advice = f"Run it with HFTransformers({self.path!r})." if generates else "Train it as one first."
            raise MethodMisfit(f"{self!r} is not a classifier (its task is {self.task}). {advice}")
        return [str(label) for _, label in sorted((self.config.id2label or {}).items())]

    @property
    def is_multi_label(self) -> bool:
        """Whether a text may have several labels at once."""
        return getattr(self.config, "problem_type", None) == "multi_label_classification"

    @cached_property
    def card(self) -> Card:
        """Where the model came from."""
        if self.node is not None:
            return self.node.card
        return read_card(Path(self.path)) or Card(
            Path(self.path).name, "trainer", type(self).__name__, models=[self.path], base_model=self.path
        )

    @property
    def num_parameters(self) -> int:
        """Number of weights, shared ones once; quantized layers count their dequantized weights."""
        return count_parameters(self.model)

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all files that are needed to run the model: weights, config and tokenizer."""
        folder = Path(self.path)
        if not folder.is_dir():
            raise StorageError(f'"{self.path}" is not a folder on this machine, so its files cannot be counted.')
        return sum(file.stat().st_size for file in model_files(folder))

    def __fingerprint__(self) -> tuple[Any, ...]:
        if self._fingerprint is not None:
            return "node", self._fingerprint
        # Another data type gives other answers.
        cast_to = () if self.dtype is None else (str(self.dtype).removeprefix("torch."),)
        if Path(self.path).is_file():
            return "file", hf_source(self.path).identity, *cast_to
        if not Path(self.path).is_dir():
            return "model", self.path, *cast_to
        return *files_identity(Path(self.path)), *cast_to

    # Using it

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, in evaluation mode, loaded lazily."""
        from transformers import AutoModelForCausalLM

        from datadreamer_like import formats

        options = {} if self.dtype is None else {"dtype": self.dtype}
        source = hf_source(self.path)
        with loading(source):
            if source.gguf_file is None:
                model = formats.load(self.path, **options)
            else:
                model = AutoModelForCausalLM.from_pretrained(source.name, **source.options, **options)
                forget_gguf(model)
        if self.device is not None:
            model.to(self.device)
        model.eval()
        return cast("PreTrainedModel", model)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        from transformers import AutoTokenizer

        source = hf_source(self.path)
        with loading(source):
            return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(source.name, **source.options))

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when needed."""
        if self.__dict__.pop("model", None) is not None:
            free_memory()

    def logits(
        self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns a classifier's logits, float array [texts, classes], in the order of `labels`.

        Texts are batched by length, to reduce padding, and cut at `max_length` tokens or the model's own limit.

        Raises:
            MethodMisfit: The model is not a classifier.
            ArgumentTypeError: `texts` is a single text.
            DataError: One of the texts is not a text.
        """
        from datadreamer_like.distillation import teacher_logits_for_texts

        if isinstance(texts, str):
            raise ArgumentTypeError(
                f"texts is one text, {texts[:40]!r}; it must be a list of texts. Put it into a list."
            )
        _ = self.labels  # raises if the model is not a classifier
        found = teacher_logits_for_texts(self, texts, batch_size=batch_size, max_length=max_length)
        return cast("np.ndarray[Any, np.dtype[np.float32]]", found.numpy())

    def predict(self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None) -> Predictions:
        """Returns labels and probabilities of texts, in their order; see `logits` for arguments and errors."""
        import numpy as np

        logits = self.logits(texts, batch_size=batch_size, max_length=max_length).astype(np.float64)
        classes = self.labels
        labels: list[Any]
        if self.is_multi_label:
            probabilities = 1 / (1 + np.exp(-logits))
            labels = [[classes[index] for index in np.flatnonzero(row > 0.5)] for row in probabilities]
        else:
            powers = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
            probabilities = powers / powers.sum(axis=1, keepdims=True)
            labels = [classes[index] for index in probabilities.argmax(axis=1)]
        return Predictions(classes, labels, probabilities.astype(np.float32))

    # Passing it on

    def export(self, format: str = "safetensors", to: str | Path = "") -> Path:
        """Writes the model to the folder `to` atomically, for use elsewhere; an earlier export there is replaced.

        The only `format` is "safetensors": a folder that transformers and `TrainedModel.load` open.

        Raises:
            DefinitionError: The format is unknown, or no folder is given.
            StorageError: The folder holds something else.
        """
        if format != "safetensors":
            hint = did_you_mean(format, ["safetensors"])
            raise DefinitionError(f'There is no export format "{format}". There are: safetensors.{hint}')
        if not str(to):
            raise DefinitionError("export needs the folder to write to: export(to=folder).")
        target = local_path(to, "Exporting a model")
        with new_export(target, "Exporting a model", (CARD_NAME,)) as draft:
            if Path(self.path).is_dir():
                shutil.copytree(self.path, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD_NAME))
            else:
                self.save(self.model, self.tokenizer, draft)
            write_card(draft, self.card)
        return target

    def publish_to_hf_hub(
        self,
        repo_id: str,
        branch: str | None = None,
        private: bool = False,
        token: str | None = None,
        is_synthetic: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Publishes the model with a generated card, and returns its URL; see `hub.publish_model`."""
        from datadreamer_like.hub import publish_model

        saved = getattr(self.config, "quantization_config", None) or {}
        compressed = isinstance(saved, dict) and saved.get("quant_method") == "datadreamer_like"
        imports = ["datadreamer_like.formats"] if compressed else []
        # The saved card may name files of this machine; the published one is made from it.
        ignore = [*kwargs.pop("ignore", ()), CARD_NAME]
        options = {"task": self.task, "imports": imports, **kwargs, "ignore": ignore, "is_synthetic": is_synthetic}
        return publish_model(
            Path(self.path), repo_id, card=self.card, branch=branch, private=private, token=token, **options
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("model", "tokenizer")}
        return {**kept, "node": None, "card": self.card}

    def __repr__(self) -> str:
        return f"TrainedModel({self.node.name if self.node is not None else self.path!r})"


@contextmanager
def loaded(trained: TrainedModel) -> Iterator[TrainedModel]:
    """Loads the model, and frees its memory after the block unless it was in use before."""
    in_use = "model" in vars(trained)
    try:
        assert trained.model is not None
        yield trained
    finally:
        if not in_use:
            trained.unload_model()
