"""Quantized products of one row on a GPU: their share of the memory's bandwidth, and time against bitsandbytes.

Run: python benchmarks/gpu_kernels.py [--rounds N]
Kernels are replayed in a CUDA graph over copies of a weight that do not fit in the cache. The bandwidth is that of a
copy within the device's memory, bytes read plus bytes written. "calls" are timed by the host's clock, without a graph.
Exit code 1 if a kernel reads its weight at less than 70 % of the bandwidth at the larger sizes, or is slower than
bitsandbytes at any.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

from datadreamer_like.kernels import (
    absmax_quantize,
    codebook_linear,
    int8_linear,
    nf4_dequantize,
    nf4_linear,
    nf4_quantize,
    pack_bits,
)
from datadreamer_like.kernels.backends import Backend
from datadreamer_like.kernels.triton.int8 import quantize_rows, scaled_product

SIZES = [(4096, 4096), (14336, 4096), (4096, 14336), (28672, 8192)]  # [out, in]
LARGE = 50_000_000  # weights; smaller ones are read in less time than a kernel takes to start and to end
CACHE = 200e6  # bytes
FORCED = ("NF4, pairs", "levels, pairs")  # not what is chosen without `backend=`, so no bar is theirs


def replayed(calls: Sequence[Callable[[], object]], rounds: int) -> float:
    """The median time of a call in seconds."""
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    found = []
    for _ in range(rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) * 1e-3 / len(calls))
    return sorted(found[2:])[rounds // 2]


def called(call: Callable[[], object], count: int = 200) -> float:
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def bandwidth(rounds: int) -> float:
    source = torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16)
    copy = torch.empty_like(source)
    for _ in range(50):  # the clocks of an idle device are low
        torch.add(source, 1, out=copy)
    # An addition: `copy_` of a device's memory is slower.
    return 2 * source.nbytes / replayed([lambda: torch.add(source, 1, out=copy)] * 4, rounds)


@dataclass
class Case:
    """A product `x Wᵀ` of ours and of bitsandbytes, of the tensors of a weight, and what it should give."""

    name: str
    weight: tuple[Tensor, ...]
    ours: Callable[[tuple[Tensor, ...]], Tensor]
    peer: Callable[[tuple[Tensor, ...]], Tensor] | None
    exact: Tensor
    kernels: int = 1


def nf4(w: Tensor, x: Tensor, backend: Backend = "triton") -> Case:
    packed, absmax = nf4_quantize(w)
    state = bnb.quantize_4bit(w.bfloat16(), blocksize=64, quant_type="nf4")[1]
    exact = x.double() @ nf4_dequantize(packed, absmax, w.shape).double().T
    return Case(
        "NF4" if backend == "triton" else "NF4, pairs",
        (packed, absmax),
        lambda one: nf4_linear(x, *one, len(w), backend=backend),
        lambda one: bnb.gemv_4bit(x, one[0].view(-1, 1).t(), state=state),
        exact,
    )


def int8_product(w: Tensor, x: Tensor) -> Case:
    codes, scale = absmax_quantize(w, axis=-1)
    x_codes, x_scale = quantize_rows(x, 127)
    return Case(
        "int8 product",
        (codes, scale),
        lambda one: scaled_product(x_codes, x_scale, *one, None),
        lambda one: bnb.int8_linear_matmul(x_codes, one[0]),
        (x_codes.double() @ codes.double().T) * x_scale.double() * scale.double().T,
    )


def int8_layer(w: Tensor, x: Tensor) -> Case:
    codes, scale = absmax_quantize(w, axis=-1)
    x_codes, x_scale = quantize_rows(x, 127)
    half, rows, columns = x.half(), 127 * x_scale.flatten(), 127 * scale.flatten()

    def peer(one: tuple[Tensor, ...]) -> Tensor:
        product = bnb.int8_linear_matmul(bnb.int8_vectorwise_quant(half)[0], one[0])
        return bnb.int8_mm_dequant(product, rows, columns)

    exact = (x_codes.double() @ codes.double().T) * x_scale.double() * scale.double().T
    return Case("int8 layer", (codes, scale), lambda one: int8_linear(x, *one), peer, exact, kernels=2)


def levels_of_4_bits(w: Tensor, x: Tensor, backend: Backend = "triton") -> Case:
    levels, numbers = torch.randn(16, device="cuda"), torch.randint(0, 16, w.shape, device="cuda")
    exact = x.double() @ levels[numbers].double().T
    weight = (pack_bits(numbers, 4),)
    name = "4-bit levels" if backend == "triton" else "levels, pairs"
    return Case(name, weight, lambda one: codebook_linear(x, one[0], levels, backend=backend), None, exact)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA device.")
    speed = bandwidth(rounds)
    print(f"{torch.cuda.get_device_name()}, copies at {speed / 1e12:.2f} TB/s; x is one row in bf16")
    print(f"{'':34}{'us':>8}{'TB/s':>7}{'of copy':>9}{'peer us':>9}{'ratio':>7}{'call us':>9}{'peer':>7}{'error':>9}")
    shares, ratios = [], []
    for outputs, inputs in SIZES:
        w = torch.randn(outputs, inputs, device="cuda") * 0.02
        x = torch.randn(1, inputs, device="cuda").bfloat16()
        pairs = (partial(nf4, backend="triton-pairs"), partial(levels_of_4_bits, backend="triton-pairs"))
        for make in (nf4, int8_product, int8_layer, levels_of_4_bits, *pairs):
            case = make(w, x)
            error = float((case.ours(case.weight).double() - case.exact).norm() / case.exact.norm())
            size = sum(tensor.nbytes for tensor in case.weight)
            copies = [tuple(tensor.clone() for tensor in case.weight) for _ in range(int(CACHE / size) + 2)]
            took = replayed([partial(case.ours, one) for one in copies], rounds)
            share = size / took / speed
            chosen = case.name not in FORCED
            if outputs * inputs >= LARGE and case.kernels == 1 and chosen:
                shares.append(share)
            theirs = ratio = peer_call = ""
            if case.peer is not None:
                seconds = replayed([partial(case.peer, one) for one in copies], rounds)
                theirs, ratio = f"{seconds * 1e6:.1f}", f"{took / seconds:.2f}"
                if chosen:
                    ratios.append(took / seconds)
                peer_call = f"{called(partial(case.peer, copies[0])) * 1e6:.1f}"
            call = called(partial(case.ours, copies[0])) * 1e6
            print(
                f"{case.name:14}{outputs:>10} x {inputs:<7}{took * 1e6:8.1f}{size / took / 1e12:7.2f}{share:9.0%}"
                f"{theirs:>9}{ratio:>7}{call:9.1f}{peer_call:>7}{error:9.1e}"
            )
    fast, first = min(shares) >= 0.7, max(ratios) <= 1
    print(f"at least 70 % of the bandwidth at the larger sizes: {'met' if fast else 'missed'}")
    print(f"not slower than bitsandbytes: {'met' if first else 'missed'}")
    return 0 if fast and first else 1


if __name__ == "__main__":
    sys.exit(main())
