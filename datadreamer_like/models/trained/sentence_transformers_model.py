"""What embedders and rerankers share that sentence-transformers loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import signature
from types import SimpleNamespace
from typing import Any, cast

from datadreamer_like.errors import DefinitionError, MethodMisfit

from ..known_options import options_of_run, refuse_unknown, refuse_unknown_loading
from ..model import Model, check_spelling, checked_device, free_memory
from ..task_models.task_model import TextOptions
from .hf_source import HOW_FETCHED, HFSource, hf_source, loading
from .model_facts import task_of
from .saved_config import config_values

# Arguments of both classes of sentence-transformers, so that the usual ones are known before it is imported.
_SHARED = frozenset({
    "backend", "config_kwargs", "local_files_only", "model_kwargs", "processor_kwargs", "prompts", "revision", "token",
    "tokenizer_kwargs",
})  # fmt: skip
_OWN = frozenset({"self", "model_name_or_path", "modules", "device", "trust_remote_code"})
_OF_WEIGHTS = ("model_kwargs", "config_kwargs", "backend")
"""Arguments without effect on a graph: it has no weights to load, and its config decides nothing in it."""
_INSTEAD = {"use_auth_token": "Give token instead.", **options_of_run(TextOptions)}


def refuse_unknown_kwargs(kind: type, loaded_by: str, model: Any, trust: bool, kwargs: Mapping[str, Any]) -> None:
    """Refuses options of `kind` that the class `loaded_by` of sentence-transformers does not take for a model.

    Raises:
        DefinitionError: A name is unknown, also one in `model_kwargs`.
    """
    if unusual := kwargs.keys() - _SHARED:
        import sentence_transformers

        taken = {*signature(getattr(sentence_transformers, loaded_by)).parameters} - _OWN
        refuse_unknown(kind, unusual, taken, f"sentence_transformers.{loaded_by}", _INSTEAD)
    source = hf_source(model, kwargs.get("revision"))
    given = (kwargs.get("model_kwargs") or {}).keys()
    refuse_unknown_loading(kind, given, source, source.fetching(trust, kwargs))


def check_graph_embedder(source: HFSource, device: Any, dtype: Any, kwargs: Mapping[str, Any]) -> None:
    """Checks, from its config alone, that an ONNX export embeds texts, and that it is given nothing without effect.

    Raises:
        DefinitionError: It is given a device other than the CPU, or an option of weights.
        MethodMisfit: Its graph ends in a head, so that it has no vectors of tokens.
    """
    weights = {"dtype": dtype, **{name: kwargs.get(name) for name in _OF_WEIGHTS}}
    elsewhere = device is not None and str(device) != "cpu"
    given = [name for name, value in weights.items() if value] + ["device"] * elsewhere
    if given:
        raise DefinitionError(
            f"{source.name} is a graph of ONNX Runtime, which runs on the CPU in the precision of its export: "
            f"{', '.join(given)} has no effect on it. Leave {'it' if len(given) == 1 else 'them'} out."
        )
    assert source.folder is not None
    task = task_of(cast("Any", SimpleNamespace(**config_values(source.folder) or {})))
    if task != "feature-extraction":
        raise MethodMisfit(
            f"{source.name} is the graph of a model for {task}: it gives logits, not the vectors of tokens that an "
            "embedder pools. Pass the model that it was exported from."
        )


class SentenceTransformersModel(Model):
    """A model that a class of sentence-transformers loads: which one it is, how it is loaded, what identifies it."""

    def set_source(
        self, model_name: Any, trust_remote_code: bool, device: Any, dtype: Any, kwargs: dict[str, Any]
    ) -> None:
        """Keeps the arguments; raises `UnknownModel` if the path does not exist, `DefinitionError` if a device."""
        if isinstance(device, list):
            raise DefinitionError(
                f"device={device!r:.100}: a model of sentence-transformers is on one device. For several, pass one "
                "model each to ParallelEmbedder or ParallelRetriever."
            )
        check_spelling(device, dtype)
        self._source = hf_source(model_name, kwargs.get("revision"))
        self.model_name = str(model_name) if isinstance(model_name, str | os.PathLike) else self._source.name
        self.trust_remote_code = trust_remote_code
        self.device = device
        self.dtype = dtype
        self.kwargs = kwargs

    def loaded_by(self, kind: Any) -> Any:
        """Returns the model, loaded by a class of sentence-transformers, in evaluation mode and on its device."""
        # Registers the formats of pruned and quantized models with transformers.
        import datadreamer_like.formats  # noqa: F401

        options = dict(self.kwargs)
        if self.dtype is not None:
            options["model_kwargs"] = {"dtype": self.dtype, **options.get("model_kwargs", {})}
        options["device"] = None if self.device is None else str(checked_device(self.device))
        with loading(self._source, weights=True):
            model = kind(self._source.name, trust_remote_code=self.trust_remote_code, **options).eval()
        if any(_is_coded(module) for module in model.modules()):
            raise MethodMisfit(
                f"{self._source.name} has weights in compressed-tensors, which sentence-transformers does not decode. "
                'Serve it with vLLM, or export the model as "safetensors".'
            )
        return model

    def identity(self) -> dict[str, Any]:
        """Returns the model's content or name, and all options that determine a result."""
        return {
            "model": self._source.identity,
            "dtype": str(self.dtype).removeprefix("torch."),
            "kwargs": {name: value for name, value in self.kwargs.items() if name not in HOW_FETCHED},
        }

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when needed."""
        if self.__dict__.pop("model", None) is not None:
            free_memory()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "model"}


def _is_coded(module: Any) -> bool:
    saved = getattr(getattr(module, "config", None), "quantization_config", None)
    method = saved.get("quant_method") if isinstance(saved, Mapping) else getattr(saved, "quant_method", None)
    return str(getattr(method, "value", method)) == "compressed-tensors"
