"""Cast: weights in a floating dtype of 16 bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.method import why_unquantizable
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.formats.quantizer import has_codes

CastDtype = Literal["float16", "bfloat16"]


@dataclass(frozen=True)
class Cast(CompressionMethod):
    """Weights and activations in fp16 or bf16: half the size of fp32.

    fp16 keeps 11 bits of a number's precision, up to 65,504: weights beyond are refused, and activations beyond become
    infinite. bf16 has the range of fp32, with 8 bits. On GPUs both are faster than fp32. On a CPU they are only with
    instructions for them (AMX or AVX512-BF16 for bf16), and slower elsewhere: `Compare` measures it.

    The result is a plain model of that dtype, which anything loads. Positions and other buffers that are not saved stay
    as they are, and so do modules that the architecture keeps in fp32.

    Attributes:
        dtype: "bfloat16" or "float16".

    Example:
        >>> from torch import nn
        >>> Cast("float16").apply(nn.Linear(8, 4)).weight.dtype
        torch.float16
    """

    dtype: CastDtype = "bfloat16"

    kind = "quantization"

    def __post_init__(self) -> None:
        if self.dtype not in get_args(CastDtype):
            raise DefinitionError(f'dtype is {self.dtype!r}; choose "float16" or "bfloat16".')

    def fits(self, model: nn.Module) -> str | None:
        """Any module with weights in a wider dtype that are not quantized, its adapters merged."""
        tensors = [] if has_codes(model) else self._kept(model)
        wider = [name for name, tensor in tensors if tensor.element_size() > self._target.itemsize]
        return why_unquantizable(model, wider, f"weights in a wider dtype than {self.dtype}")

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Casts parameters and saved buffers in place; calibration data are not used."""
        largest = torch.finfo(self._target).max
        for name, tensor in self._kept(model):
            if not bool((tensor.abs() <= largest).all()):
                raise MethodMisfit(
                    f'"{name}" holds numbers beyond {largest:g}, the largest of {self.dtype}, or NaN. '
                    'Use dtype="bfloat16", or look at how the model was trained.'
                )
            tensor.data = tensor.data.to(self._target)
        if hasattr(model, "config"):
            model.config.dtype = self._target

    @property
    def _target(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def _kept(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The floating tensors that are saved, and that the architecture does not keep in fp32, with their names."""
        names = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
        if self.dtype == "float16":
            names |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
        patterns = [name.replace("*", ".*") for name in names]
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and not any(re.search(pattern, name) for pattern in patterns):
                yield name, tensor
