"""A classifier of transformers as a task model: the probability of each class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import DefinitionError, require_extra

from ..known_options import options_of_run, refuse_unknown_loading
from ..model import check_spelling, placed
from ..trained.hf_source import HOW_FETCHED, adapter_source, hf_source, loading, with_adapter
from ..trained.model_facts import model_max_length
from ..trained.trained_model import TrainedModel
from .task_model import TaskModel, TextOptions

if TYPE_CHECKING:
    import torch

_NO_LIMIT = 10**9


class HFClassificationTaskModel(TaskModel[dict[str, float]]):
    """A classifier, whose result for a text is the probability of each class: `{"cat": 0.9, "dog": 0.1}`.

    They are those of `TrainedModel.predict`: of a calibrated model at its temperature, and of a multi-label model one
    probability for each class on its own.

    Args:
        model_name: A folder, a trainer, stage or trained model, or a Hub id. Models pruned and quantized by this
            package can be loaded.
        revision, trust_remote_code: Branch, tag or commit on the Hub; whether code in its repository may run.
        device: Device of the model; a list of GPUs spreads it over them; None uses a GPU if there is one.
        device_map: accelerate's device map, instead of `device`.
        dtype: Data type of the weights, such as "bfloat16"; None for that of the files.
        adapter_name: PEFT adapter for the model, loaded with `adapter_kwargs`: a folder, a Hub id, or a trainer with
            one.
        **kwargs: Further arguments of `from_pretrained`, among them values for the model's config.

    Raises:
        MissingExtra: torch, transformers or, for an adapter, peft is not installed.
        DefinitionError: `from_pretrained` takes no argument of a name in `kwargs` for this model.
        UnknownModel: The path does not exist.
        MethodMisfit: The model is not a classifier; raised when it is first used.

    Example:
        >>> topics = HFClassificationTaskModel("me/topics")  # doctest: +SKIP
        >>> topics.run(["Parses command lines."])  # doctest: +SKIP
        [{'cli': 0.97, 'games': 0.03}]
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | Any,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: int | str | torch.device | list[int | str | torch.device] | None = None,
        device_map: Mapping[str, Any] | str | None = None,
        dtype: str | torch.dtype | None = None,
        adapter_name: str | os.PathLike[str] | Any | None = None,
        adapter_kwargs: Mapping[str, Any] | None = None,
        cache_folder_path: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cache_folder_path)
        require_extra("train", "torch", "transformers", what=type(self).__name__)
        if adapter_name is not None:
            require_extra("train", "peft", what="An adapter")
        elif adapter_kwargs is not None:
            raise DefinitionError(
                "adapter_kwargs was given without an adapter_name. Name the adapter, or leave it out."
            )
        self._source = hf_source(model_name, revision)
        self._adapter = adapter_source(adapter_name) if adapter_name is not None else None
        self.model_name = str(model_name) if isinstance(model_name, str | os.PathLike) else self._source.name
        self.trust_remote_code = trust_remote_code
        check_spelling(device, dtype)
        self.device = device
        self.device_map = device_map
        self.dtype = dtype
        self.adapter_kwargs = dict(adapter_kwargs or {})
        self.kwargs = kwargs
        fetching = self._source.fetching(trust_remote_code, kwargs)
        refuse_unknown_loading(type(self), kwargs.keys(), self._source, fetching, instead=options_of_run(TextOptions))

    @cached_property
    def trained(self) -> TrainedModel:
        """The model as a `TrainedModel`, loaded with the options of this one.

        Raises:
            MethodMisfit: It is not a classifier.
        """
        from transformers import AutoConfig, AutoTokenizer

        from datadreamer_like import formats

        trained = TrainedModel(self._source.name, dtype=self.dtype)
        options = self._source.fetching(self.trust_remote_code, self.kwargs)
        with loading(self._source):
            trained.config = AutoConfig.from_pretrained(self._source.name, **options)
        _ = trained.labels  # raises if it is not a classifier
        device, placing = placed(self.device, self.device_map)
        typed = {} if self.dtype is None else {"dtype": self.dtype}
        with loading(self._source, weights=True):
            if not self.reads_texts(trained):
                trained.tokenizer = AutoTokenizer.from_pretrained(self._source.name, **options)
            model: Any = formats.load(self._source.name, **{**options, **typed, **placing, **self.kwargs})
        if self._adapter is not None:
            model = with_adapter(model, self._adapter, self.adapter_kwargs)
        trained.model = (model if placing else model.to(device)).eval()
        return trained

    @staticmethod
    def reads_texts(trained: TrainedModel) -> bool:
        """Whether a model reads texts without a tokenizer, such as a linear one on counts of words."""
        return bool(getattr(trained.config, "reads_texts", False))

    @property
    def model(self) -> Any:
        """The model, in evaluation mode, on its device."""
        return self.trained.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.trained.tokenizer

    def identity(self) -> dict[str, Any]:
        """Returns the model's content or name, and all options that determine probabilities."""
        return {
            "model": self._source.identity,
            "adapter": self._adapter.identity if self._adapter is not None else None,
            "adapter_kwargs": self.adapter_kwargs,
            "dtype": str(self.dtype).removeprefix("torch."),
            "kwargs": {name: value for name, value in self.kwargs.items() if name not in HOW_FETCHED},
        }

    def compute(self, texts: Sequence[str], **asks: Any) -> list[dict[str, float]]:
        """Returns the probability of each class for the texts of a batch."""
        found = self.trained.predict(texts, batch_size=len(texts))
        return [dict(zip(found.classes, row, strict=True)) for row in found.probabilities.tolist()]

    def count_tokens(self, value: str) -> int:
        """Returns the number of tokens of a text, with special tokens; of words, for a model without a tokenizer."""
        if self.reads_texts(self.trained):
            return len(value.split())
        return len(self.tokenizer(value, verbose=False)["input_ids"])

    @cached_property
    def model_max_length(self) -> int:
        """Maximum number of tokens of a text."""
        if self.reads_texts(self.trained):
            return _NO_LIMIT
        return model_max_length(self.trained.config, self.tokenizer)

    @property
    def display_name(self) -> str:
        """Class, model and adapter, for display."""
        adapter = "" if self._adapter is None else f" + {self._adapter.name}"
        return f"{type(self).__name__} ({self.model_name}{adapter})"

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when needed."""
        trained = self.__dict__.pop("trained", None)
        if trained is not None:
            trained.unload_model()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "trained"}
