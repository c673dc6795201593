"""Integer matrix products: exact ones in plain PyTorch, and PyTorch's int8 engines for CPUs.

An engine takes unsigned 8-bit activations and signed 8-bit weights. CPUs without VNNI add pairs of products in 16 bits,
which silently overflow unless activations have at most 7 bits. As engines can be configured to use fewer instructions,
each is tested once with values that would overflow, and gets as many activation bits as it multiplies correctly.
"""

from __future__ import annotations

import platform
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

_EXACT_IN_FP32 = 1024  # products of two int8 that can be added in fp32 without rounding: 2^24 / 2^14
_packing = threading.Lock()


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Returns `a bᵀ`, exactly: int32 [..., out] for a in int8 [..., in] and b in int8 [out, in].

    The reference: fp32 products of parts short enough to be exact, so it runs at the speed of fp32 on any device.
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


@dataclass(frozen=True)
class PackedInt8Weight:
    """An int8 weight [out, in] and its scales [out, 1], packed for an engine for CPUs; cannot be pickled.

    Attributes:
        shape: (out, in).
        largest: Largest magnitude of activations that the engine multiplies without overflow: 127 or 63.
        product: Returns `codes weightᵀ scaleᵀ`, fp32 [rows, out]. `codes`, fp32 [rows, in], are whole numbers of
            magnitude up to `largest`; at least one row.
    """

    shape: torch.Size
    largest: int
    product: Callable[[Tensor], Tensor]


def _fbgemm(weight: Tensor, scale: Tensor, largest: int) -> PackedInt8Weight:
    """The fastest for few rows on all CPUs; uses quantized tensors, which PyTorch plans to remove."""
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with _packing, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        scales = scale.double().flatten()
        quantized = torch._make_per_channel_quantized_tensor(weight.contiguous(), scales, zeros, 0)
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            packed: Any = torch.ops.quantized.linear_prepack(quantized, None)
        finally:
            torch.backends.quantized.engine = engine
    linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return PackedInt8Weight(weight.shape, largest, lambda codes: linear(codes, 1.0, largest + 1, packed))


def _onednn(weight: Tensor, scale: Tensor, largest: int) -> PackedInt8Weight:
    packed: Any = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    scales, zeros = scale.float().flatten(), torch.zeros(len(weight), dtype=torch.int64)
    # Activations are shifted to be unsigned. Subtracting the shift's part here saves a pass over the weights per call.
    shift = -(largest + 1) * weight.sum(1) * scales

    def product(codes: Tensor) -> Tensor:
        unsigned, linear = (codes + (largest + 1)).to(torch.uint8), torch.ops.onednn.qlinear_pointwise
        found: Tensor = linear(unsigned, 1.0, 0, packed, scales, zeros, shift, 1.0, 0, torch.float32, "none", [], "")
        return found

    return PackedInt8Weight(weight.shape, largest, product)


Engine = Callable[[Tensor, Tensor], PackedInt8Weight]

ENGINES: list[Engine] = [partial(pack, largest=largest) for pack in (_fbgemm, _onednn) for largest in (127, 63)]


def pack_int8_weight(weight: Tensor, scale: Tensor) -> PackedInt8Weight | None:
    """Packs an int8 weight [out, in] on the CPU and its scale, fp32 [out, 1], for this machine's `fastest_engine`."""
    engine = fastest_engine()
    return None if engine is None else engine(weight, scale)


@cache
def fastest_engine() -> Engine | None:
    """The fastest engine that multiplies right here, with as many bits as it does; None if there is none."""
    # On other architectures oneDNN falls back on loops that are slower than fp32.
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    for engine in ENGINES:
        # An engine may not be built in, or be removed.
        with suppress(RuntimeError, AttributeError, NotImplementedError):
            if is_exact(engine):
                return engine
    return None


def is_exact(engine: Engine) -> bool:
    """Whether an engine multiplies right on this processor, with the largest activations too."""
    features, outputs = 192, 96
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, features), generator=generator, dtype=torch.int8)
    weight[:4] = torch.tensor([127, -127, 127, -127], dtype=torch.int8)[:, None]
    packed = engine(weight, torch.ones(outputs, 1))
    # Engines have other loops for one row than for few, and for many.
    for rows in (1, 5, 64):
        codes = torch.randint(-packed.largest, packed.largest + 1, (rows, features), generator=generator).float()
        codes[: (rows + 1) // 2] = packed.largest
        if not torch.allclose(packed.product(codes), codes @ weight.float().T, rtol=1e-5, atol=1.0):
            return False
    return True
