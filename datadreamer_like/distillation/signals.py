"""What a `StoredTeacher` keeps of a teacher's outputs: compact columns of numbers, and their way back to outputs.

A row's signals are flat arrays by name. `capture` makes them for a batch of rows, `restore` reads those of a batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number, check_sequence, did_you_mean
from datadreamer_like.kernels.divergences import check_temperature

from .sparse_losses import Rule, SparseTargets, Tail
from .teacher import Named, check_logits

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]
"""Signals of a row: flat arrays by name."""

_HALF = float(np.finfo(np.float16).max)
_UINT16_IDS = 1 << 16
_POSITIONS_A_TIME = 256


class Signals(ABC):
    """What is kept of a teacher's outputs at each position: `TopK`, `Sampled` or `Hidden`."""

    result_version: ClassVar[int] = 1
    """Incremented when the same options store something else."""
    reads: ClassVar[str]
    """The field of the teacher's `Outputs` that is stored."""

    def at(self, temperatures: Collection[float]) -> Signals:
        """Returns the signals for an objective that compares distributions at these temperatures."""
        return self

    @abstractmethod
    def capture(self, found: Any, mask: Tensor, keys: Sequence[bytes], named: Named | None = None) -> list[Columns]:
        """Returns the columns of each row of a batch.

        `found` is the field `reads` of the teacher's outputs, `mask` [rows, positions] has the positions to keep, and
        `keys` are digests of the rows, which seed what is random. A NaN or +∞ raises `DataError`, in which `named`
        returns what a row of the batch is called.
        """

    @abstractmethod
    def restore(self, columns: Mapping[str, Array], mask: Tensor) -> dict[str, Any]:
        """Returns fields of `Outputs` for a batch, from the columns of its rows one after another; see `capture`."""


@dataclass(frozen=True)
class TopK(Signals):
    """The `k` most likely tokens and their log-probabilities: small, and biased.

    `tail` says how a loss counts the probability of all other tokens: "bucket" makes one class of them, so that the
    loss is a lower bound of the full divergence, at which the listed tokens have the teacher's probabilities; "drop"
    leaves them out, which is no bound and rewards the student for too much probability on listed tokens; "renormalise"
    rescales both sides to the listed tokens, so that the student learns nothing of the others. At vocabulary 32,000 and
    k = 128, for a full forward KL of 0.125, one draw of random logits gives 0.038, 0.075 and 0.119. `Sampled` is
    unbiased.

    A token takes `2 k` bytes of log-probabilities (fp16), `2 k` of ids for vocabularies up to 65,536 or else `4 k`, and
    two for each of the `temperatures`, at which losses can compare the distributions.

    Example:
        `SoftTargets(StoredTeacher(teacher, TopK(16)), temperature=2.0)`

    Raises:
        DefinitionError: An option is out of range.
    """

    k: int = 16
    tail: Tail = "bucket"
    temperatures: Sequence[float] = (1.0, 2.0, 4.0)

    reads: ClassVar[str] = "logits"

    def __post_init__(self) -> None:
        check_number(self.k, "k", 1, whole=True)
        if self.tail not in get_args(Tail):
            raise DefinitionError(
                f'tail "{self.tail}" is unknown.{did_you_mean(str(self.tail), get_args(Tail))} '
                f"Choose one of {', '.join(get_args(Tail))}."
            )
        check_sequence(self.temperatures, "temperatures", "numbers")
        if not self.temperatures:
            raise DefinitionError("temperatures is empty. List those of the losses, such as [1.0].")
        for temperature in self.temperatures:
            check_temperature(temperature)
        object.__setattr__(self, "temperatures", tuple(float(value) for value in self.temperatures))

    @property
    def rule(self) -> Tail:
        """The rule of its `SparseTargets`."""
        return self.tail

    def capture(self, found: Any, mask: Tensor, keys: Sequence[bytes], named: Named | None = None) -> list[Columns]:
        """Returns `ids`, `log_probs` [positions, k] and `rest` [positions, temperatures] of each row."""
        check_logits(found, mask, named)
        kept: Tensor = found[mask]
        parts = [self._captured(kept[start : start + _POSITIONS_A_TIME]) for start in _starts(len(kept))]
        return _by_row(_joined(parts), mask)

    def _captured(self, logits: Tensor) -> Columns:
        log_q = logits.float().log_softmax(-1)
        best = log_q.topk(min(self.k, log_q.shape[-1]), dim=-1)
        log_q.scatter_(1, best.indices, -math.inf)
        rest = torch.stack([(log_q / temperature).logsumexp(-1) for temperature in self.temperatures], dim=-1)
        ids = packed_ids(best.indices.cpu().numpy(), logits.shape[-1])
        return {"ids": ids, "log_probs": _half(best.values), "rest": _half(rest)}

    def restore(self, columns: Mapping[str, Array], mask: Tensor) -> dict[str, Any]:
        """Returns `targets` at the positions of the mask."""
        return {"targets": _targets(columns, "rest", mask, self.rule, tuple(self.temperatures))}


@dataclass(frozen=True)
class Sampled(Signals):
    """`n` different tokens at each position: the likeliest as they are, the rest drawn; unbiased.

    A token of probability q is kept with probability `min(1, q/c)` and weight `max(q, c)`, where c is such that n are
    kept: of all unbiased choices of n tokens, that of least variance (Barnes et al. 2024, arXiv:2402.14925). The draw
    is systematic, so the weights sum to 1. The loss `Σ w (log q - log p)` has the full forward KL as its mean over
    draws, and its gradient the full gradient, as with tokens drawn one by one (Anshumann et al. 2025,
    arXiv:2503.16870), and less noise for the same bytes.

    Rows are drawn once and are the same in each epoch: a student that sees few rows many times can fit the draw, as it
    can fit labels. Other rows, or a larger n, help; further epochs do not. A draw is for one `temperature`, None for
    that of the objective: objectives of another temperature ask the teacher again.

    A token takes `4 n + 2` bytes, or `6 n + 2` for vocabularies above 65,536.

    Example:
        `SoftTargets(StoredTeacher(teacher, Sampled(n=16)), temperature=1.0)`

    Raises:
        DefinitionError: An option is out of range.
    """

    n: int = 16
    temperature: float | None = None
    seed: int = 0

    result_version: ClassVar[int] = 2
    reads: ClassVar[str] = "logits"

    def __post_init__(self) -> None:
        check_number(self.n, "n", 1, whole=True)
        if self.temperature is not None:
            check_temperature(self.temperature)
        check_number(self.seed, "seed", whole=True)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The one temperature."""
        return (1.0 if self.temperature is None else float(self.temperature),)

    @property
    def rule(self) -> Literal["sampled"]:
        """The rule of its `SparseTargets`."""
        return "sampled"

    def at(self, temperatures: Collection[float]) -> Signals:
        """Returns the signals with the temperature of a loss, if they have none."""
        if self.temperature is not None or len(temperatures) != 1:
            return self
        return replace(self, temperature=float(next(iter(temperatures))))

    def capture(self, found: Any, mask: Tensor, keys: Sequence[bytes], named: Named | None = None) -> list[Columns]:
        """Returns `ids`, `log_probs` [positions, n] and `least` [positions], the logarithm of c, of each row."""
        check_logits(found, mask, named)
        draws = []
        for key, count in zip(keys, mask.sum(-1).tolist(), strict=True):
            # Seeded by the row, so that the draw does not depend on the rows asked with it.
            random = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") % 2**62 + self.seed)
            draws.append(torch.rand(count, generator=random, dtype=torch.float64))
        kept, draw = found[mask], torch.cat(draws).to(found.device)
        spans = [slice(start, start + _POSITIONS_A_TIME) for start in _starts(len(kept))]
        return _by_row(_joined([self._captured(kept[span], draw[span]) for span in spans]), mask)

    def _captured(self, logits: Tensor, draw: Tensor) -> Columns:
        log_q = (logits.float() / self.temperatures[0]).log_softmax(-1)
        best = log_q.topk(min(self.n, log_q.shape[-1]), dim=-1)
        top, q = best.values.double().exp(), log_q.double().exp()  # the sum of many probabilities needs the digits
        slots = torch.arange(top.shape[-1], device=top.device)
        beyond = q.scatter(1, best.indices, 0.0).sum(-1, keepdim=True)
        left = top.flip(-1).cumsum(-1).flip(-1) + beyond  # what the likeliest 0, 1, ... tokens leave
        exact = (top > left / (len(slots) - slots)).cumprod(-1).sum(-1, keepdim=True)
        below = q.scatter(1, best.indices, top.masked_fill(slots < exact, 0.0)).cumsum(-1)
        least = below[:, -1:] / (len(slots) - exact)
        points = (draw[:, None] + slots - exact).clamp(min=0) * least
        drawn = torch.searchsorted(below, points, right=True).clamp(max=log_q.shape[-1] - 1)
        ids = torch.where(slots < exact, best.indices, drawn)
        return {
            "ids": packed_ids(ids.cpu().numpy(), log_q.shape[-1]),
            "log_probs": _half(log_q.gather(1, ids)),
            "least": _half(least.log()),
        }

    def restore(self, columns: Mapping[str, Array], mask: Tensor) -> dict[str, Any]:
        """Returns `targets` at the positions of the mask."""
        return {"targets": _targets(columns, "least", mask, self.rule, self.temperatures)}


@dataclass(frozen=True)
class Hidden(Signals):
    """Hidden states of some of the teacher's layers at each token, in fp16; 0 is the embeddings.

    A token takes two bytes for each layer and dimension. `HiddenStates` reads no others.

    Example:
        `HiddenStates(StoredTeacher(teacher, Hidden([6, 12])), layers={1: 6, 2: 12})`

    Raises:
        DefinitionError: The layers are not a list of numbers from 0.
    """

    layers: Sequence[int]

    reads: ClassVar[str] = "hidden_states"

    def __post_init__(self) -> None:
        numbers = list(self.layers) if isinstance(self.layers, list | tuple) else []
        if not numbers or not all(type(each) is int and each >= 0 for each in numbers):
            raise DefinitionError(
                f"layers is {self.layers!r}; it must list layers of the teacher, counted from 1 (0 is the embeddings), "
                "such as [3, 6]."
            )
        object.__setattr__(self, "layers", tuple(sorted({*numbers})))

    def capture(self, found: Any, mask: Tensor, keys: Sequence[bytes], named: Named | None = None) -> list[Columns]:
        """Returns `layer_N` [tokens, hidden size] of each row."""
        for layer in self.layers:
            check_logits(found[layer].abs(), mask, named)
        states = {f"layer_{layer}": found[layer][mask] for layer in self.layers}
        return _by_row({name: _half(each) for name, each in states.items()}, mask)

    def restore(self, columns: Mapping[str, Array], mask: Tensor) -> dict[str, Any]:
        """Returns `hidden_states`; layers that are not stored are empty."""
        states = [torch.empty(0)] * (max(self.layers) + 1)
        for layer in self.layers:
            states[layer] = _at_positions(columns[f"layer_{layer}"], mask)
        return {"hidden_states": tuple(states)}


def packed_ids(ids: Array, vocabulary: int) -> Array:
    """Returns token ids in the smallest type that holds a vocabulary."""
    return ids.astype(np.uint16 if vocabulary <= _UINT16_IDS else np.int32)


def check_signals(signals: object) -> tuple[Signals, ...]:
    """Returns one or several kinds of signals as a tuple; no two may store the same field of the teacher's outputs.

    Raises:
        ArgumentTypeError, DefinitionError: They are no signals, or not of different fields.
    """
    found = tuple(signals) if isinstance(signals, list | tuple) else (signals,)
    if not found or not all(isinstance(each, Signals) for each in found):
        raise ArgumentTypeError(
            f"signals must be TopK(k=...), Sampled(n=...), Hidden(layers=[...]), or a list of these, not {signals!r}."
        )
    if len({each.reads for each in found if isinstance(each, Signals)}) < len(found):
        raise DefinitionError(f"Two of {list(found)} store the same output of the teacher. Keep one of them.")
    return tuple(each for each in found if isinstance(each, Signals))


def _starts(count: int) -> range:
    return range(0, max(count, 1), _POSITIONS_A_TIME)


def _half(values: Tensor) -> Array:
    # -∞ stays: it is a probability of 0.
    finite = torch.where(values.isneginf(), values, values.clamp(-_HALF, _HALF))
    return finite.to(torch.float16).cpu().numpy()


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _by_row(arrays: Mapping[str, Array], mask: Tensor) -> list[Columns]:
    ends = mask.sum(-1).cumsum(0).tolist()
    return [
        {name: array[start:end].reshape(-1) for name, array in arrays.items()}
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _targets(
    columns: Mapping[str, Array], rest: str, mask: Tensor, rule: Rule, temperatures: tuple[float, ...]
) -> SparseTargets:
    ids = _at_positions(columns["ids"].astype(np.int64), mask)
    log_probs, others = (_at_positions(columns[name].astype(np.float32), mask) for name in ("log_probs", rest))
    return SparseTargets(ids, log_probs, others, rule, temperatures)


def _at_positions(values: Array, mask: Tensor) -> Tensor:
    """Returns values of the positions of a mask as a tensor of its shape and their own width, 0 elsewhere."""
    flat = torch.from_numpy(np.ascontiguousarray(values)).to(mask.device).view(int(mask.sum()), -1)
    shown = flat.new_zeros(*mask.shape, flat.shape[-1])
    shown[mask] = flat
    return shown
