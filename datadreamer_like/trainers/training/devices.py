"""Where a trainer trains: one device, or several with a process for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.models.model import checked_device, named_device

from .options import Training


def named_devices(device: Any, trainer: type, several: bool) -> list[torch.device]:
    """Returns the devices that an argument of a trainer names, one or a list; none for None.

    Raises:
        ArgumentTypeError, DefinitionError: One is no device; there are several, and they are of different types, not
            of this machine, or named twice; or the trainer does not train on `several`.
    """
    listed = list(device) if isinstance(device, Sequence) and not isinstance(device, str) else [device]
    known = (str, int, torch.device, type(None))
    if any(not isinstance(each, known) or isinstance(each, bool) for each in listed):
        raise ArgumentTypeError(f'device must be a name such as "cpu" or "cuda:0", not {device!r}.')
    found: list[torch.device] = [named_device(each) for each in listed if each is not None]
    if len(found) < 2:
        return found
    if not several:
        raise DefinitionError(
            f"device={listed!r} names several devices, and {trainer.__name__} trains on one. Name one. On several "
            "train TrainHFClassifier, TrainHFTokenClassifier, TrainHFFineTune and TrainHFMaskedLM."
        )
    kinds = {each.type for each in found}
    if len(kinds) > 1 or not kinds <= {"cpu", "cuda"}:
        raise DefinitionError(f"device={listed!r}: several devices must be CUDA devices, or processes on the CPU.")
    if kinds == {"cuda"} and len({each.index or 0 for each in found}) < len(found):
        raise DefinitionError(f"device={listed!r} names a CUDA device twice. Name each once.")
    return [checked_device(each) for each in found]


def training_device(device: str | int | torch.device | None) -> torch.device:
    """Returns where to train: the device asked for, or the GPU if there is one.

    Raises:
        DefinitionError: The process is one of several that `accelerate launch` or `torchrun` started: each would run
            the whole script, and wait for the others in the first training while they wait for its session.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes.isdecimal() and int(processes) > 1:
        raise DefinitionError(
            f"The script was started in {processes} processes (WORLD_SIZE), by accelerate launch or torchrun. Here "
            'a trainer starts them itself: run it by python, and name the GPUs by device=["cuda:0", "cuda:1"].'
        )
    if device is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    found: torch.device = checked_device(device)
    return found


def check_devices(
    name: str, devices: Sequence[torch.device], training: Training, dtype: str | torch.dtype | None, quantized: bool
) -> None:
    """Checks that the trainer called `name` can train on its devices; none for the GPU, if there is one.

    Raises:
        DefinitionError: A device does not compute in this precision; or each of several devices would have no row of a
            batch, or a quantized model, which stays on the device on which it was loaded.
    """
    if training.autocast(dtype) == "fp16" and training_device(next(iter(devices), None)).type == "cpu":
        raise DefinitionError(f'"{name}": training in float16 needs a GPU. Leave it out, or pass dtype="bfloat16".')
    if len(devices) > 1 and quantized:
        raise DefinitionError(
            f'"{name}": an adapter on quantized weights is trained on one device. Name one, or leave out qlora and '
            "quantization_config."
        )
    if training.batch_size < len(devices):
        raise DefinitionError(
            f'"{name}": batch_size={training.batch_size} is fewer rows than the {len(devices)} devices among which '
            "each batch is divided. Raise batch_size, or name fewer devices."
        )
