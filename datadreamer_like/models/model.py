"""The base of all models: name, identity and metadata."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.identity import class_part
from datadreamer_like.storage.exports import local_path


class Model:
    """Base of LLMs, task models and retrievers: their names, metadata and identities.

    Attributes:
        model_name: The model's name in the script.
        cache_folder_path: Folder of the cache, instead of the session's.
        icon: A symbol for the display.
    """

    result_version: ClassVar[int] = 1
    """Increased when the same arguments and prompts give a different result."""

    model_name: str = ""
    cache_folder_path: str | Path | None = None
    icon: str = ""
    # What describes the model: its files, or the model that it is made of.
    _source: Any = None

    def __init__(self, cache_folder_path: str | Path | None = None) -> None:
        self.cache_folder_path = local_path(cache_folder_path, "cache_folder_path") if cache_folder_path else None

    @classmethod
    def example(cls, model: Any) -> Self:
        """Returns the smallest instance, for tests and documentation; a retriever's `model` is an embedder."""
        return cls(model)

    def identity(self) -> dict[str, Any]:
        """Returns everything that determines a result, except class, name and input; never a secret."""
        return {}

    @property
    def model_card(self) -> str | None:
        """URL of the model's card on the Hub."""
        return getattr(self._source, "model_card", None)

    @property
    def license(self) -> str | None:
        """The model's licence, or its URL, if it is known."""
        return getattr(self._source, "license", None)

    @property
    def citation(self) -> list[str] | None:
        """BibTeX entries to cite when using the model."""
        return getattr(self._source, "citation", None)

    @property
    def version(self) -> float:
        """Version of the results; override it where the result changes for a reason that the code does not show."""
        return float(self.result_version)

    @property
    def display_icon(self) -> str:
        """A symbol for the display."""
        return self.icon

    @property
    def display_name(self) -> str:
        """Class and model, for display."""
        return f"{type(self).__name__} ({self.model_name})" if self.model_name else type(self).__name__

    @property
    def answers_name(self) -> str:
        """The start of the name of the file with its cached answers."""
        return type(self).__name__

    def within_budget(self, ask: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Returns what a run calls for each request: `ask`, or for a model that costs money a function around it."""
        return ask

    def unload_model(self) -> None:
        """Frees the model's memory; it is loaded again when needed."""

    def __fingerprint__(self) -> Any:
        kind = type(self)
        version = {} if kind.version is Model.version else {"version": self.version}
        parts = {**class_part(kind), **version, "model": self.model_name, **self.identity()}
        return dict(sorted(parts.items()))  # the order in which a class writes them does not decide

    def __repr__(self) -> str:
        return f"<{self.display_name}>"


def free_memory() -> None:
    """Frees the memory of models that are no longer referenced."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_spelling(device: Any, dtype: Any) -> None:
    """Refuses devices and data types that do not exist; does not load torch for those that scripts usually name."""
    listed = device if isinstance(device, list) else [] if device is None else [device]
    if len(listed) > 1 and any(str(each).startswith("cpu") for each in listed):
        raise DefinitionError(f"device={listed!r}: a model is spread over GPUs only. Name one device, or several GPUs.")
    for each in listed:
        if not (isinstance(each, str) and re.fullmatch(r"(cpu|cuda|mps)(:\d+)?", each)):
            checked_device(each)
    if device == []:
        raise DefinitionError("device is an empty list; name a device, or leave it out.")
    if dtype not in (None, "auto", "float32", "float16", "bfloat16"):
        checked_dtype(dtype)


def checked_device(device: Any) -> Any:
    """Returns the `torch.device` that an argument names; refuses one that this machine does not have."""
    import torch

    found = named_device(device)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise DefinitionError(f'device="{found}" was given, but this machine has no MPS device. Leave it out.')
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise DefinitionError(
            f'device="{found}" was given, but this machine has {torch.cuda.device_count()} CUDA devices. Leave it out.'
        )
    if found.type == "meta":
        raise DefinitionError('device="meta" holds no weights. Pass "cpu", "cuda" or "cuda:0".')
    return found


def named_device(device: Any) -> Any:
    """Returns the `torch.device` that an argument names, on this machine or another; a number is that of a GPU."""
    import torch

    is_number = isinstance(device, int) and not isinstance(device, bool) and device >= 0
    try:
        return torch.device(f"cuda:{device}" if is_number and not torch.accelerator.is_available() else device)
    except (RuntimeError, TypeError) as error:
        raise DefinitionError(f'device cannot be {device!r}. Pass "cpu", "cuda" or "cuda:0".') from error


def checked_dtype(dtype: Any) -> Any:
    """Returns the `torch.dtype` that an argument names; refuses one that weights cannot have."""
    import torch

    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise DefinitionError(f'dtype cannot be {dtype!r}; expected a floating-point type of torch such as "bfloat16".')
    return found


def placed(device: Any, device_map: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the device of a transformers model, and the arguments that spread it over several instead, if any.

    `device` is an argument of a model: None uses a GPU if there is one, and a list spreads it over these GPUs.
    """
    import torch

    if device_map is not None:
        return "map", {"device_map": device_map}
    if isinstance(device, list) and len(device) == 1:
        (device,) = device
    if isinstance(device, list):
        free = {each: torch.cuda.mem_get_info(each)[0] for each in device}
        return "map", {"device_map": "auto", "max_memory": free}
    if device is not None:
        return checked_device(device), {}
    return torch.device("cuda" if torch.cuda.is_available() else "cpu"), {}
