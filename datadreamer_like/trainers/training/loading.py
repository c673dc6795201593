"""How a trainer loads its model: the options, devices and precisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch

from datadreamer_like.errors import ArgumentTypeError, DefinitionError


class HFOptions(TypedDict, total=False):
    """How a trainer loads its model; any other name goes to `from_pretrained`."""

    revision: str | None
    """Branch, tag or commit of a model on the Hub."""
    trust_remote_code: bool
    """Run code that comes with the model."""
    device: Any
    """Where to train, such as "cpu" or "cuda:0"; None for a GPU if there is one."""
    dtype: str | torch.dtype | None
    """Precision; None for float32. With "bfloat16" or "float16" a full fine-tuning runs in mixed precision on float32
    weights, an adapter's on a base model in that type."""
    quantization_config: Any
    """A transformers quantization config, to train an adapter on a quantized model (QLoRA)."""
    peft_config: Any
    """A peft config, such as `LoraConfig()`: an adapter is trained and merged into the model at the end."""
    distributed_config: Any
    """Accepted for DataDreamer scripts, like the next two; one process trains on one device."""
    fsdp: Any
    fsdp_config: Any
    force: bool
    """Train again even if the result exists."""
    verbose: bool | None
    """False shows only warnings of this trainer."""
    log_level: int | None
    """A level of `logging` that overrides `verbose`."""
    progress_interval: float | None
    """Seconds between progress lines without a terminal; None for none."""


def one_device(device: Any) -> torch.device | None:
    """Returns the device that an argument names; None for none.

    Raises:
        DefinitionError: It names several, or a device that does not exist.
        ArgumentTypeError: It is not a device.
    """
    if isinstance(device, Sequence) and not isinstance(device, str):
        if len(device) > 1:
            raise DefinitionError(
                f"device={list(device)!r} names several devices; one process trains on one device here. Name one."
            )
        device = device[0] if device else None
    try:
        return None if device is None else torch.device(device)
    except TypeError as error:
        raise ArgumentTypeError(f'device must be a name such as "cpu" or "cuda:0", not {device!r}.') from error
    except RuntimeError as error:
        raise DefinitionError(f'There is no device {device!r}. Pass "cpu", "cuda" or "cuda:0".') from error


def training_device(device: str | int | torch.device | None) -> torch.device:
    """Returns where to train: the device asked for, or the GPU if there is one.

    Raises:
        DefinitionError: This machine has no such device.
    """
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DefinitionError(f'device="{device}" was asked for, but this machine has no CUDA device. Leave it out.')
    return device


def a_dtype(dtype: Any) -> torch.dtype | None:
    """Returns the data type that an argument names; None for float32, the default.

    Raises:
        DefinitionError: There is no such type.
    """
    found = torch.float32 if dtype in (None, "auto") else getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise DefinitionError(f'dtype {dtype!r} is unknown. Pass "float32", "bfloat16" or "float16".')
    return None if found == torch.float32 else found
