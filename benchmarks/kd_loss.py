"""Word-level distillation loss from hidden states: time and memory of the fused kernel, the plain loss and the peers.

Forward and backward of the Jensen-Shannon divergence (β = 0.5) between a student and a teacher, each a hidden state per
token and an output matrix. "materialised" computes all logits and lets autograd do the rest. Peers, where they are
installed: trl's chunked divergence (of its DistillationTrainer) and Liger Kernel's fused linear JSD.

Run: python benchmarks/kd_loss.py [--tokens N] [--words N] [--hidden N] [--dtype bfloat16] [--device cuda] [--rounds N]
Without options: 4,096 tokens x 128,000 words in bf16 on a GPU; 1,024 x 32,768 in fp32 on a CPU.
Bars: at most 1/10 of the extra memory of the materialised loss at no more than 1.1 times its time, and no more memory
or time than each peer. Exit code 1 if one is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from kept_rows import processor
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.kernels import fused_linear_divergence

BETA = 0.5
NOISE = 1.03  # timings of one program differ by this much between rounds

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def materialised(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    """The formula on all logits, in fp32 as trainers compute it."""
    log_p = F.log_softmax(F.linear(student, student_head).float(), dim=-1)
    with torch.no_grad():
        log_q = F.log_softmax(F.linear(teacher, teacher_head).float(), dim=-1)
    log_m = torch.logaddexp(log_p, log_q) + torch.log(torch.tensor(BETA, device=log_p.device))
    to_q = F.kl_div(log_m, log_q, reduction="sum", log_target=True)
    to_p = F.kl_div(log_m, log_p, reduction="sum", log_target=True)
    return (BETA * to_q + (1 - BETA) * to_p) / len(student)


def ours(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    return fused_linear_divergence(student, student_head, teacher, teacher_head, kind="jsd", beta=BETA)


def trls(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    rows, _ = ChunkedDivergenceFunction.apply(student, student_head, None, teacher, teacher_head, None, BETA)
    return rows.sum() / len(student)


def ligers(student: Tensor, student_head: Tensor, teacher: Tensor, teacher_head: Tensor) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # Compilation takes a minute on a CPU.
    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=BETA, compiled=student.is_cuda)
    labels = torch.zeros(len(student), dtype=torch.long, device=student.device)
    return loss(student, student_head, teacher, teacher_head, labels)


def losses() -> dict[str, Loss]:
    found: dict[str, Loss] = {"materialised": materialised, "ours": ours}
    if importlib.util.find_spec("trl") is not None:
        found["trl"] = trls
    if importlib.util.find_spec("liger_kernel") is not None:
        found["Liger"] = ligers
    return found


def inputs(options: argparse.Namespace) -> list[Tensor]:
    generator = torch.Generator(options.device).manual_seed(0)
    dtype, hidden = getattr(torch, options.dtype), options.hidden

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=options.device)
        return (drawn / shape[-1] ** 0.25).to(dtype)

    student = [draw(options.tokens, hidden).requires_grad_(), draw(options.words, hidden).requires_grad_()]
    return [*student, draw(options.tokens, 2 * hidden), draw(options.words, 2 * hidden)]


def once(loss: Loss, given: list[Tensor]) -> float:
    """Seconds of a forward and a backward pass."""
    for part in given:
        part.grad = None
    wait = torch.cuda.synchronize if given[0].is_cuda else lambda: None
    wait()
    started = time.perf_counter()
    loss(*given).backward()
    wait()
    return time.perf_counter() - started


def memory(name: str, options: argparse.Namespace) -> float:
    """Megabytes above the inputs at the peak, gradients included."""
    if options.device == "cuda":
        given = inputs(options)
        once(losses()[name], given)
        for part in given:
            part.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(losses()[name], given)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # The peak of a process of its own, since it counts what any library allocates.
    command = [sys.executable, __file__, "--alone", name]
    for option in ("tokens", "words", "hidden", "dtype"):
        command += [f"--{option}", str(getattr(options, option))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def alone(name: str, options: argparse.Namespace) -> None:
    """Prints the growth of this process's peak memory by one loss."""
    small = argparse.Namespace(**{**vars(options), "tokens": 64, "words": 256})
    once(losses()[name], inputs(small))  # what the libraries load is no part of the loss
    given = inputs(options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once(losses()[name], given)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6)


def losses_that_run(options: argparse.Namespace) -> tuple[dict[str, Loss], dict[str, float]]:
    """Returns the losses that run here, and the extra memory of each, in MB."""
    found, used = losses(), {}
    for name in list(found):
        try:
            used[name] = memory(name, options)
        except (ImportError, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"{name} does not run here: {str(error).splitlines()[0]}")
            del found[name]
    return found, used


def main() -> int:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--words", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    gpu = options.device == "cuda"
    sizes = {"tokens": 4096, "words": 128_000, "hidden": 2048, "dtype": "bfloat16", "rounds": 20}
    if not gpu:
        sizes = {"tokens": 1024, "words": 32_768, "hidden": 256, "dtype": "float32", "rounds": 3}
    for name, value in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.alone:
        alone(options.alone, options)
        return 0
    found, used = losses_that_run(options)
    if not {"materialised", "ours"} <= {*found}:
        print("Without the materialised loss and ours there is nothing to compare. Choose fewer tokens or words.")
        return 1
    given = inputs(options)
    values = {name: float(loss(*given).detach()) for name, loss in found.items()}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(options.rounds):
        for name, loss in found.items():
            seconds[name].append(once(loss, given))
    fastest = {name: min(taken) for name, taken in seconds.items()}
    where = torch.cuda.get_device_name() if gpu else f"{processor()}, {torch.get_num_threads()} threads"
    print(
        f"{options.tokens:,} tokens x {options.words:,} words, hidden {options.hidden} and {2 * options.hidden}, "
        f"{options.dtype}, on {where}; the fastest of {options.rounds} rounds in turn"
    )
    for name in found:
        ratios = f"{used[name] / used['materialised']:6.3f}   {fastest[name] / fastest['materialised']:6.2f}"
        print(
            f"  {name:14} {used[name]:10,.0f} MB {1e3 * fastest[name]:10,.1f} ms   {ratios}   loss {values[name]:.5f}"
        )
    print("  (ratios: memory and time of the materialised loss)")
    checks = {
        "at most 1/10 of the materialised loss's memory": used["ours"] <= used["materialised"] / 10,
        "at most 1.1 times its time": fastest["ours"] <= 1.1 * fastest["materialised"],
    }
    for peer in [name for name in found if name not in ("materialised", "ours")]:
        checks[f"no more memory than {peer}"] = used["ours"] <= used[peer] * NOISE
        checks[f"no more time than {peer}"] = fastest["ours"] <= fastest[peer] * NOISE
    for what, met in checks.items():
        print(f"{what}: {'met' if met else 'MISSED'}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
