"""A model in a folder: the result and the starting point of trainers and stages, and a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datadreamer_like.errors import MethodMisfit, StorageError
from datadreamer_like.graph import Card
from datadreamer_like.graph.card import CARD_NAME
from datadreamer_like.storage.folders import explained

from ..exports.report import EXPORT_NAME, Runtime, opened
from ..model import free_memory
from ..quiet import quiet
from .confidence import CONFIDENCE_NAME, Confidence
from .embedder_files import config_of, head_left_out
from .hf_source import forget_gguf, hf_source, loading, local_folder
from .model_facts import Task, count_parameters, dtype_name, head_options, imports_of, instead_of_predict, task_of
from .model_files import check_publishable, files_identity, model_files, model_folder, read_card, write_card
from .predictions import (
    Answers,
    Predictions,
    check_fallback,
    check_texts,
    decisions,
    hand_over,
    log_odds,
    probabilities,
    warn_of_outside,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from datadreamer_like.graph import Node


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
        runtime: Runtime = "torch",
    ) -> None:
        self.path = str(path)
        self.runtime: Runtime = runtime
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
        runtime: Runtime = "torch",
    ) -> TrainedModel:
        """Opens a saved or exported model; with `runtime="onnx"`, an ONNX export runs on ONNX Runtime.

        Raises:
            StorageError: The folder has no model of this runtime, or was changed after the export.
            DefinitionError: The runtime is unknown, or has no choice of device and data type.
        """
        found = opened(model_folder(Path(folder).expanduser()), runtime, device, dtype)
        return cls(found, device=device, dtype=dtype, runtime=runtime)

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
        folder = Path(folder).expanduser()
        with explained("Saving a model", folder), quiet():
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
        return config_of(self.path)

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
            advice = instead_of_predict(self.task, self.path)
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

    @cached_property
    def confidence(self) -> Confidence:
        """The temperature and threshold that were fitted on this model, by the stages `Calibrate` and `Abstain`."""
        folder = local_folder(self.path, CONFIDENCE_NAME)
        return Confidence() if folder is None else Confidence.read(folder)

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
            return "node", self._fingerprint, *(() if self.runtime == "torch" else (self.runtime,))
        # Another data type or runtime gives other answers.
        cast_to = () if self.dtype is None else (dtype_name(self.dtype),)
        if self.runtime != "torch":
            cast_to = (*cast_to, self.runtime)
        if Path(self.path).is_file():
            return "file", hf_source(self.path).identity, *cast_to
        if not Path(self.path).is_dir():
            return "model", self.path, *cast_to
        return *files_identity(Path(self.path)), *cast_to

    # Using it

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, in evaluation mode, loaded lazily; on ONNX Runtime, a module that is called in the same way."""
        if self.runtime == "onnx":
            from ..exports.onnx_model import OnnxModel

            return cast("PreTrainedModel", OnnxModel(self.path))
        from transformers import AutoModelForCausalLM

        from datadreamer_like import formats

        options: dict[str, Any] = {} if self.dtype is None else {"dtype": self.dtype}
        source = hf_source(self.path)
        with loading(source, weights=True):
            if source.gguf_file is None:
                model = formats.load(self.path, **options, **head_left_out(self.config))
            else:
                options |= {"config": self.config, **source.options}
                model = AutoModelForCausalLM.from_pretrained(source.name, **options)
                forget_gguf(model)
        if self.device is not None:
            model.to(self.device)
        return cast("PreTrainedModel", model.eval())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; `MethodMisfit` for a model that reads texts without one."""
        return self.new_tokenizer()

    def new_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer as it was saved: one that was used has the truncation of its last call."""
        from transformers import AutoTokenizer

        if getattr(self.config, "reads_texts", False):
            raise MethodMisfit(
                f"{self!r} reads texts without a tokenizer, so it cannot be used where tokens are needed: as the start "
                "of training, for calibration, or as a teacher of tokens. Choose a transformers model."
            )
        with loading(source := hf_source(self.path)):
            return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(source.name, **source.options))

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when needed."""
        if self.__dict__.pop("model", None) is not None:
            free_memory()

    def logits(
        self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns a classifier's logits, float array [texts, classes], in the order of `labels`.

        Texts are batched by length, to reduce padding, and cut at `max_length` tokens or the model's own limit. A CPU
        computes a batch in parts of about 512 tokens a thread, which stay in its cache.

        Raises:
            MethodMisfit: The model is not a classifier.
            ArgumentTypeError: `texts` is a single text.
            DataError: One of the texts is not a text, or its logits are NaN or infinite.
        """
        from datadreamer_like.distillation import teacher_logits_for_texts

        check_texts(texts)
        _ = self.labels  # raises if the model is not a classifier
        found = teacher_logits_for_texts(self, texts, batch_size=batch_size, max_length=max_length, called=repr(self))
        return cast("np.ndarray[Any, np.dtype[np.float32]]", found.numpy())

    def predict(self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None) -> Predictions:
        """Returns labels and probabilities of texts, in their order; see `logits` for arguments and errors.

        Probabilities are those at the model's temperature, if it was calibrated.
        """
        return self._predicted(self.logits(texts, batch_size=batch_size, max_length=max_length))[0]

    def predict_or_abstain(
        self,
        texts: Sequence[str],
        fallback: Callable[[list[str]], Sequence[Any]] | None = None,
        *,
        batch_size: int = 32,
    ) -> Answers:
        """Answers the texts whose log-odds are above the model's threshold, and hands the others over.

        The threshold is that of the stage `Abstain`, which describes its guarantee. Texts are cut as they were when it
        was fitted.

        Args:
            texts: The texts.
            fallback: Called once with all texts that are handed over; returns their labels. One that is not a class of
                the model is kept, and warned of with its row. None: they have the label None.
            batch_size: Texts in a batch.

        Raises:
            MethodMisfit: The model has no threshold, was changed after the threshold was fitted, or runs in another
                data type.
            DataDreamerError: See `logits`; or the fallback returned another number of labels.
        """
        check_fallback(fallback)
        threshold = self.confidence.usable_threshold(repr(self), dtype_name(self.dtype))
        logits = self.logits(texts, batch_size=batch_size, max_length=threshold.max_length)
        predictions, certainty = self._predicted(logits)
        answered = certainty > threshold.log_odds
        labels = hand_over(texts, predictions.labels, answered, fallback)
        warn_of_outside(labels, predictions.classes, "predict_or_abstain")
        return Answers(labels, answered, predictions)

    def _predicted(self, logits: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[Predictions, np.ndarray[Any, Any]]:
        """Returns what logits say at the model's temperature, and their log-odds [texts]."""
        import numpy as np

        scaled, multi = self.confidence.scaled(logits.astype(np.float64)), self.is_multi_label
        found = Predictions(
            self.labels, decisions(scaled, self.labels, multi), probabilities(scaled, multi).astype(np.float32)
        )
        return found, log_odds(scaled, multi)

    def spans(
        self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
    ) -> list[list[dict[str, Any]]]:
        """Returns the spans that a token classifier finds in each text: dicts of start, end, label and score.

        For arguments and errors see `logits`; a text's part after the maximum length has no spans.
        """
        from .spans import predict_spans

        if self.task != "token-classification":
            raise MethodMisfit(
                f"{self!r} finds no spans (its task is {self.task}). Train it with TrainHFTokenClassifier."
            )
        check_texts(texts)
        found = predict_spans(self, texts, batch_size=batch_size, max_length=max_length)
        return [[{**span} for span in spans] for spans in found]

    # Passing it on

    def export(
        self, format: str = "safetensors", to: str | Path = "", *, texts: Iterable[str] | None = None, **options: Any
    ) -> Path:
        """Writes the model to the folder `to` atomically, for use elsewhere; an earlier export there is replaced.

        `docs/exports.md` lists the formats and their options: "safetensors" (for transformers with this package),
        "compressed-tensors", "gptq", "gguf" and "onnx". All but the first are written from the model before
        quantization, and end with a check: the runtime's logits for `texts` are compared with the model's. The report,
        `models.Exported`, is saved in the folder.

        Args:
            format: Name of the format.
            to: The folder.
            texts: Texts to compare logits on, of which up to 32 are taken; None for the calibration column of the
                stage that made the model, or for a few sentences.
            options: Options of the format.

        Raises:
            DefinitionError: The format or an option is unknown, or no folder is given.
            MethodMisfit: The format cannot hold the model, or the runtime computes something else from the files.
            MissingExtra: A package that writes or runs the format is not installed.
            StorageError: The folder holds something else.
        """
        from ..exports.write import export_model

        return export_model(self, format, to, texts, options)

    def why_not_export(self, format: str, **options: Any) -> str | None:
        """Returns why the model cannot be exported in this format with these options; None if it can."""
        from ..exports.write import why_not

        return why_not(self, format, options)

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

        check_publishable(Path(self.path))
        # The saved card may name files of this machine; the published one is made from it.
        ignore = [*kwargs.pop("ignore", ()), CARD_NAME, EXPORT_NAME]
        loading = {"task": self.task, "imports": imports_of(self.config), "options": head_options(self.config)}
        options = {**loading, **kwargs, "ignore": ignore, "is_synthetic": is_synthetic}
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
