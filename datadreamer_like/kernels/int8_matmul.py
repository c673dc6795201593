"""Integer matrix products: exact ones in plain PyTorch, and PyTorch's int8 engines for CPUs.

An engine takes unsigned 8-bit activations and signed 8-bit weights. CPUs without VNNI add pairs of products in 16 bits,
which silently overflow unless activations have at most 7 bits. The CPU's name does not decide this, since engines can
be configured to use fewer instructions; so each engine is tested once with values that would overflow, and gets as many
activation bits as it multiplies correctly.
"""

from __future__ import annotations

import functools
import platform
import threading
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

_EXACT_IN_FP32 = 1024  # products of two int8 that can be added in fp32 without rounding: 2^24 / 2^14
_packing = threading.Lock()


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Returns `a bᵀ` of integers, exactly.

    The reference: fp32 products of parts short enough to be exact, so it runs at the speed of fp32 on any device.

    Args:
        a: int8 [..., in].
        b: int8 [out, in].

    Returns:
        int32 [..., out].

    Raises:
        DefinitionError: Dtypes or shapes do not fit.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8 or b.dim() != 2 or a.shape[-1] != b.shape[1]:
        raise DefinitionError(
            f"int8_matmul takes int8 [..., in] and int8 [out, in], and got {a.dtype} {list(a.shape)} and "
            f"{b.dtype} {list(b.shape)}. Quantize both along their last dimension."
        )
    total = torch.zeros(*a.shape[:-1], b.shape[0], dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        for start in range(0, a.shape[-1], _EXACT_IN_FP32):
            part = slice(start, start + _EXACT_IN_FP32)
            total += (a[..., part].float() @ b[:, part].float().T).int()
    return total


class PackedInt8Weight(ABC):
    """An int8 weight with its scales in the form that an engine for CPUs takes; cannot be pickled, is cheap to remake.

    Args:
        weight: int8 [out, in], on the CPU.
        scale: fp32 [out, 1].

    Attributes:
        largest: Largest magnitude of activations that the engine multiplies without overflow: 127 or 63.
        shape: (out, in).
    """

    largest = 127

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.shape = tuple(weight.shape)
        self._pack(weight.contiguous(), scale.float().flatten().contiguous())

    @abstractmethod
    def _pack(self, weight: Tensor, scale: Tensor) -> None:
        """Makes the engine's form of the weight."""

    @abstractmethod
    def product(self, codes: Tensor) -> Tensor:
        """Returns `codes weightᵀ scaleᵀ`, fp32 [rows, out].

        Args:
            codes: fp32 [rows, in], whole numbers of magnitude up to `largest`; at least one row.
        """


class _FBGEMM(PackedInt8Weight):
    """The fastest for few rows on all CPUs; uses quantized tensors, which PyTorch plans to remove."""

    def _pack(self, weight: Tensor, scale: Tensor) -> None:
        zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
        with _packing, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
            engine = torch.backends.quantized.engine
            torch.backends.quantized.engine = "fbgemm"
            try:
                self._packed: Any = torch.ops.quantized.linear_prepack(quantized, None)
            finally:
                torch.backends.quantized.engine = engine

    def product(self, codes: Tensor) -> Tensor:
        linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        found: Tensor = linear(codes, 1.0, self.largest + 1, self._packed)
        return found


class _OneDNN(PackedInt8Weight):
    def _pack(self, weight: Tensor, scale: Tensor) -> None:
        self._packed: Any = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scale = scale
        self._zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
        # Activations are shifted to be unsigned; taking the shift's share off here spares the engine a pass over
        # the weights with each call.
        self._shift = -(self.largest + 1) * weight.sum(1) * scale

    def product(self, codes: Tensor) -> Tensor:
        unsigned = (codes + (self.largest + 1)).to(torch.uint8)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 0, self._packed, self._scale, self._zeros, self._shift, 1.0, 0, torch.float32, "none", [], ""
        )
        return found


class _FBGEMM7(_FBGEMM):
    largest = 63


class _OneDNN7(_OneDNN):
    largest = 63


def pack_int8_weight(weight: Tensor, scale: Tensor) -> PackedInt8Weight | None:
    """Packs a weight for the fastest engine that multiplies right on this processor.

    Args:
        weight: int8 [out, in], on the CPU.
        scale: fp32 [out, 1].

    Returns:
        The packed weight; None where this machine has no such engine.
    """
    engine = fastest_engine()
    return None if engine is None else engine(weight, scale)


@functools.cache
def fastest_engine() -> type[PackedInt8Weight] | None:
    """The fastest engine that multiplies right here, with as many bits as it does; None if there is none."""
    # On other architectures oneDNN falls back on loops that are slower than fp32.
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    for engine in (_FBGEMM, _FBGEMM7, _OneDNN, _OneDNN7):
        try:
            if _is_exact(engine):
                return engine
        except (RuntimeError, AttributeError, NotImplementedError):  # not built in, or removed
            continue
    return None


def _is_exact(engine: type[PackedInt8Weight]) -> bool:
    features, outputs = 192, 96
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, features), generator=generator, dtype=torch.int8)
    weight[:4] = torch.tensor([127, -127, 127, -127], dtype=torch.int8)[:, None]
    packed = engine(weight, torch.ones(outputs, 1))
    # Engines have other loops for one row than for few, and for many.
    for rows in (1, 5, 64):
        codes = torch.randint(-engine.largest, engine.largest + 1, (rows, features), generator=generator).float()
        codes[: (rows + 1) // 2] = engine.largest
        if not torch.allclose(packed.product(codes), codes @ weight.float().T, rtol=1e-5, atol=1.0):
            return False
    return True
