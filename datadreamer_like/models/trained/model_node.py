"""The base of nodes whose result is a model: trainers and stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, NotTrained
from datadreamer_like.graph import Node

from ..exports.report import Runtime, graph_misfit
from .hf_source import hf_source
from .predictions import Answers, Predictions
from .trained_model import TrainedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelNode(Node):
    """A node that makes a model; it can be used like a `TrainedModel`, whose `device`, `dtype` and `runtime` it has.

    `build` in a subclass saves the model to `draft / MODEL_FOLDER` with `TrainedModel.save`.
    """

    MODEL_FOLDER = "model"

    device: str | int | torch.device | None = None
    dtype: str | torch.dtype | None = None
    runtime: Runtime = "torch"
    _trained: TrainedModel | None = None

    @property
    def trained(self) -> TrainedModel:
        """The finished model; raises `NotTrained` if there is none yet."""
        self.need_result()
        if self.manifest is None or self.folder is None:
            raise NotTrained(self.describe_missing())
        if self._trained is None:
            self._trained = TrainedModel(
                self.result_folder / self.MODEL_FOLDER,
                device=self.device,
                dtype=self.dtype,
                node=self,
                runtime=self.runtime,
            )
        return self._trained

    def describe_missing(self) -> str:
        """Returns why there is no model yet."""
        return f'"{self.name}" has no model yet: its work is not done.'

    @property
    def model(self) -> PreTrainedModel:
        """The finished model, loaded lazily."""
        return self.trained.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The finished model's tokenizer."""
        return self.trained.tokenizer

    @property
    def path(self) -> str:
        """Folder of the finished model, which transformers opens too."""
        return self.trained.path

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics from when the model was made."""
        return dict(self.trained.card.metrics)

    def predict(self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None) -> Predictions:
        """Classifies texts; see `TrainedModel.predict`."""
        return self.trained.predict(texts, batch_size=batch_size, max_length=max_length)

    def predict_or_abstain(
        self,
        texts: Sequence[str],
        fallback: Callable[[list[str]], Sequence[Any]] | None = None,
        *,
        batch_size: int = 32,
    ) -> Answers:
        """Answers texts or hands them over; see `TrainedModel.predict_or_abstain`."""
        return self.trained.predict_or_abstain(texts, fallback, batch_size=batch_size)

    def export(
        self, format: str = "safetensors", to: str | Path = "", *, texts: Iterable[str] | None = None, **options: Any
    ) -> Path:
        """Writes the model for use elsewhere; see `TrainedModel.export`."""
        return self.trained.export(format, to, texts=texts, **options)

    def why_not_export(self, format: str, **options: Any) -> str | None:
        """Returns why the model cannot be exported in a format; see `TrainedModel.why_not_export`."""
        return self.trained.why_not_export(format, **options)

    def export_to_disk(self, path: str | Path, adapter_only: bool = False) -> Path:
        """Writes the model to a folder, as `export` does; with `adapter_only`, only the adapter that was trained."""
        if adapter_only:
            raise DefinitionError(f'"{self.name}" trained no adapter. Leave adapter_only out.')
        return self.export("safetensors", to=path)

    def publish_to_hf_hub(
        self,
        repo_id: str,
        branch: str | None = None,
        private: bool = False,
        token: str | None = None,
        is_synthetic: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Publishes the model with a generated card; see `TrainedModel.publish_to_hf_hub`."""
        return self.trained.publish_to_hf_hub(repo_id, branch, private, token, is_synthetic=is_synthetic, **kwargs)

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when needed."""
        if self._trained is not None:
            self._trained.unload_model()


def as_trained_model(value: object, what: str = "model") -> TrainedModel:
    """Converts a trainer, a stage, a folder or an id on the Hub to a `TrainedModel`; errors call it `what`.

    A folder with an ONNX export runs on ONNX Runtime.
    """
    if isinstance(value, TrainedModel):
        return value
    if isinstance(value, ModelNode):
        return value.trained
    if isinstance(value, str | Path):
        source = hf_source(value)
        return TrainedModel.load(source.name, runtime="onnx") if source.is_graph else TrainedModel(value)
    raise ArgumentTypeError(
        f"{what} is of type {type(value).__name__}. Pass a trainer, a stage, a TrainedModel, a folder or an id on the "
        "Hub."
    )


def as_torch_model(value: object, what: str) -> TrainedModel:
    """Converts as `as_trained_model` does where weights are needed.

    Raises:
        MethodMisfit: The model is a graph of ONNX Runtime.
    """
    trained = as_trained_model(value, what)
    for part in getattr(trained, "members", [trained]):
        if part.runtime != "torch":
            raise graph_misfit(what, repr(part))
    return trained
