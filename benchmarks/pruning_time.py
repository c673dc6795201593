"""Time of Wanda and SparseGPT on a real language model, against a bare loop of the official procedures.

The bare loops are what the papers' repositories do, for one sequence at a time, without names, checks, padding or
storage: capture the inputs of the blocks; for each block sum what the method needs in hooks, prune its linear layers,
run it again. Both prune copies of the same model in turn in one process, and the masks are compared.

Run: python benchmarks/pruning_time.py [--sequences N] [--tokens N] [--blocks N] [--rounds N] [--output FILE]
The bar is 1.5 times the bare loop, at 128 sequences of 512 tokens and all 30 blocks (the defaults). Exit code 1 if it
is missed. With --output each finished round is saved in that file, and a run that was killed goes on after it.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept_rows import KeptRows, Row
from lm_compression import load
from torch import Tensor, nn
from transformers.utils import logging

from datadreamer_like.pruning import SparseGPT, Wanda

BAR = 1.5
DAMPING, BLOCK, SPARSITY = 0.01, 128, 0.5

Prune = Callable[[nn.Linear, Tensor], None]


class Caught(Exception):
    """Ends the pass that captures the first block's inputs."""


def bare_loop(model: Any, sequences: list[Tensor], gather: Callable[[Tensor, Tensor], Tensor], prune: Prune) -> None:
    """The loop of both repositories; `gather` adds a batch [tokens, in] to a layer's statistics."""
    hidden: list[Tensor] = []
    arguments: dict[str, Any] = {}

    def catch(_: nn.Module, args: Any, kwargs: Any) -> None:
        hidden.append(args[0])
        arguments.update(kwargs)
        raise Caught

    handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for ids in sequences:
        try:
            model(ids, use_cache=False)
        except Caught:
            continue
    handle.remove()
    for block in model.model.layers:
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        sums: dict[nn.Linear, Tensor] = {layer: torch.zeros(()) for layer in layers}

        def add(layer: Any, inputs: Any, sums: dict[nn.Linear, Tensor] = sums) -> None:
            sums[layer] = gather(sums[layer], inputs[0][0].float())

        handles = [layer.register_forward_pre_hook(add) for layer in layers]
        for state in hidden:
            block(state, **arguments)
        for handle in handles:
            handle.remove()
        for layer in layers:
            prune(layer, sums[layer])
        hidden = [block(state, **arguments) for state in hidden]


def wanda(layer: nn.Linear, squares: Tensor) -> None:
    """The official mask: a full sort of each row's scores."""
    metric = layer.weight.data.abs() * squares.sqrt()
    mask = torch.zeros_like(metric, dtype=torch.bool)
    order = torch.sort(metric, dim=-1, stable=True)[1]
    mask.scatter_(1, order[:, : int(metric.shape[1] * SPARSITY)], True)
    layer.weight.data[mask] = 0


def sparse_gpt(layer: nn.Linear, hessian: Tensor) -> None:
    """The official `fasterprune`, with the threshold as the count it stands for."""
    weight = layer.weight.data.clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    diagonal = torch.arange(len(hessian))
    hessian[diagonal, diagonal] += DAMPING * hessian.diagonal().mean()
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        part, factor = weight[:, start:end].clone(), inverse[start:end, start:end]
        kept, errors = torch.zeros_like(part), torch.zeros_like(part)
        scores = part**2 / factor.diagonal() ** 2
        mask = scores < torch.sort(scores.flatten())[0][int(scores.numel() * SPARSITY)]
        for column in range(end - start):
            value = part[:, column]
            left = value.clone()
            left[mask[:, column]] = 0
            kept[:, column] = left
            error = (value - left) / factor[column, column]
            part[:, column:] -= error[:, None] @ factor[column, column:][None]
            errors[:, column] = error
        weight[:, start:end] = kept
        weight[:, end:] -= errors @ inverse[start:end, end:]
    layer.weight.data = weight


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the work returns, its seconds, and its processor seconds."""
    started, used = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - started, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a file that keeps finished rounds")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    model: Any = load()[0]
    model.model.layers = model.model.layers[: options.blocks]
    model.config.num_hidden_layers = len(model.model.layers)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40_000, (options.sequences, 1, options.tokens), generator=generator)
    batches = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    settings = {name: getattr(options, name) for name in ("sequences", "tokens", "blocks")}
    kept = KeptRows(options.output, settings)
    print(f"{kept.settings['processor']}, {len(ids)} sequences of {options.tokens} tokens, one thread")
    procedures: list[tuple[Any, Callable[[Tensor, Tensor], Tensor], Prune]] = [
        (Wanda(SPARSITY), lambda total, x: total + x.square().sum(0), wanda),
        (SparseGPT(SPARSITY), lambda total, x: total + 2 / options.sequences * x.T @ x, sparse_gpt),
    ]

    def measured(method: Any, gather: Callable[[Tensor, Tensor], Tensor], prune: Prune) -> Row:
        other = copy.deepcopy(model)
        _, bare, bare_cpu = timed(lambda: bare_loop(other, list(ids), gather, prune))
        small, ours, ours_cpu = timed(lambda: method.apply(model, batches))
        pairs = zip(small.model.layers.parameters(), other.model.layers.parameters(), strict=True)
        same = [float(((one == 0) == (two == 0)).float().mean()) for one, two in pairs if one.dim() == 2]
        times = {"ours": ours, "bare": bare, "ours_cpu": ours_cpu, "bare_cpu": bare_cpu}
        return {**times, "equal": sum(same) / len(same)}

    missed = False
    for method, gather, prune in procedures:
        ratios = []
        for number in range(options.rounds):
            one: tuple[Any, ...] = (method, gather, prune)
            row = kept.row(f"{method}, round {number + 1}", lambda one=one: measured(*one))
            ratios.append(row["ours_cpu"] / row["bare_cpu"])
            print(
                f"{method}: {row['ours']:.1f} s against {row['bare']:.1f} s ({row['ours_cpu']:.1f} and "
                f"{row['bare_cpu']:.1f} s of processor time: {ratios[-1]:.2f} x), "
                f"{100 * row['equal']:.2f} % of masks equal",
                flush=True,
            )
        missed = missed or min(ratios) > BAR
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
