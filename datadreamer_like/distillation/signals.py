"""What a `StoredTeacher` keeps of a teacher's outputs: compact columns of numbers, and their way back to outputs.

A row's signals are flat arrays by name. `capture` makes them for a batch of rows, `restore` reads those of a batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, did_you_mean
from datadreamer_like.kernels.divergences import check_temperature

from .sparse_losses import SparseTargets, Tail

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

    @abstractmethod
    def capture(self, found: Any, mask: Tensor, keys: Sequence[bytes]) -> list[Columns]:
        """Returns the columns of each row of a batch.

        `found` is the field `reads` of the teacher's outputs, `mask` [rows, positions] has the positions to keep, and
        `keys` are digests of the rows, which seed what is random.
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
        _check_count(self.k, "k")
        if self.tail not in get_args(Tail):
            raise DefinitionError(
                f'tail "{self.tail}" is unknown.{did_you_mean(str(self.tail), get_args(Tail))} '
                f"Choose one of {', '.join(get_args(Tail))}."
            )
        for temperature in self.temperatures:
            check_temperature(temperature)
        object.__setattr__(self, "temperatures", tuple(float(value) for value in self.temperatures))

    @property
    def rule(self) -> Tail:
        """The rule of its `SparseTargets`."""
        return self.tail

    def capture(self, found: Any, mask: Tensor, keys: Sequence[bytes]) -> list[Columns]:
        """Returns `ids`, `log_probs` [positions, k] and `rest` [positions, temperatures] of each row."""
        kept: Tensor = found[mask]
        parts = [self._captured(kept[start : start + _POSITIONS_A_TIME]) for start in _starts(len(kept))]
        names = ("ids", "log_probs", "rest")
        arrays = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
        return _by_row(arrays, mask)

    def _captured(self, logits: Tensor) -> tuple[Array, Array, Array]:
        log_q = logits.float().log_softmax(-1)
        best = log_q.topk(min(self.k, log_q.shape[-1]), dim=-1)
        log_q.scatter_(1, best.indices, -math.inf)
        rest = torch.stack([(log_q / temperature).logsumexp(-1) for temperature in self.temperatures], dim=-1)
        return packed_ids(best.indices.cpu().numpy(), logits.shape[-1]), _half(best.values), _half(rest)

    def restore(self, columns: Mapping[str, Array], mask: Tensor) -> dict[str, Any]:
        """Returns `targets` at the positions of the mask."""
        ids = _at_positions(columns["ids"].astype(np.int64), mask)
        log_probs, rest = (_at_positions(columns[name].astype(np.float32), mask) for name in ("log_probs", "rest"))
        return {"targets": SparseTargets(ids, log_probs, rest, self.rule, tuple(self.temperatures))}


@dataclass(frozen=True)
class Sampled(Signals):
    """`n` tokens drawn from the teacher's distribution at each position, with their counts: unbiased.

    The loss `-(1/n) Σ log p(x_i)` has the full cross-entropy as its mean over draws, and its gradient the full
    gradient (sparse logit sampling, Anshumann et al. 2025, arXiv:2503.16870). The teacher's entropy is stored too, so
    that the loss estimates the divergence. Its noise falls with `1 / n`; rows are drawn once, and are the same in each
    epoch. Tokens are drawn at `temperature`, which must be that of the loss.

    A token takes 4 bytes, or 6 for vocabularies above 65,536, for each different token drawn, and 4 more.

    Example:
        `SoftTargets(StoredTeacher(teacher, Sampled(n=50)), temperature=1.0)`

    Raises:
        DefinitionError: An option is out of range.
    """

    n: int = 50
    temperature: float = 1.0
    seed: int = 0

    reads: ClassVar[str] = "logits"

    def __post_init__(self) -> None:
        _check_count(self.n, "n")
        check_temperature(self.temperature)
        if self.n >= _UINT16_IDS:
            raise DefinitionError(f"n is {self.n:,}; counts are stored in two bytes, so it must be below 65,536.")

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The one temperature."""
        return (float(self.temperature),)

    @property
    def rule(self) -> Literal["sampled"]:
        """The rule of its `SparseTargets`."""
        return "sampled"

    def capture(self, found: Any, mask: Tensor, keys: Sequence[bytes]) -> list[Columns]:
        """Returns the tokens drawn (`ids`, `counts`) one after another, and `distinct` and `entropy` by position."""
        return [self._captured(*each) for each in zip(found, mask, keys, strict=True)]

    def _captured(self, logits: Tensor, mask: Tensor, key: bytes) -> Columns:
        # Seeded by the row, so that the draw does not depend on the rows asked with it.
        random = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") % 2**62 + self.seed)
        vocabulary, kept = logits.shape[-1], logits[mask].float().cpu() / self.temperature
        drawn, counts, distinct, entropy = [], [], [], []
        for start in _starts(len(kept)):
            log_q = kept[start : start + _POSITIONS_A_TIME].log_softmax(-1)
            entropy.append(-(log_q.exp() * log_q.clamp(min=-_HALF)).sum(-1))
            below = log_q.double().exp().cumsum(-1)  # the sum of many probabilities needs the digits
            points = torch.rand(len(log_q), self.n, generator=random, dtype=torch.float64) * below[:, -1:]
            ids = torch.searchsorted(below, points, right=True).clamp(max=vocabulary - 1)
            places = torch.arange(len(log_q))[:, None] * vocabulary
            found, times = np.unique((places + ids).numpy(), return_counts=True)
            drawn.append(found % vocabulary)
            counts.append(times)
            distinct.append(np.bincount(found // vocabulary, minlength=len(log_q)))
        return {
            "ids": packed_ids(np.concatenate(drawn), vocabulary),
            "counts": np.concatenate(counts).astype(np.uint16),
            "distinct": np.concatenate(distinct).astype(np.uint16),
            "entropy": _half(torch.cat(entropy)),
        }

    def restore(self, columns: Mapping[str, Array], mask: Tensor) -> dict[str, Any]:
        """Returns `targets` at the positions of the mask."""
        distinct = columns["distinct"].astype(np.int64)
        slots = np.arange(int(distinct.max(initial=1))) < distinct[:, None]
        ids, log_probs = np.zeros(slots.shape, dtype=np.int64), np.full(slots.shape, -np.inf, dtype=np.float32)
        ids[slots] = columns["ids"]
        log_probs[slots] = np.log(columns["counts"] / np.float32(self.n))
        shown = [_at_positions(part, mask) for part in (ids, log_probs, columns["entropy"].astype(np.float32))]
        return {"targets": SparseTargets(shown[0], shown[1], shown[2], self.rule, self.temperatures)}


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
        if not numbers or not all(isinstance(each, int) and each >= 0 for each in numbers):
            raise DefinitionError(
                f"layers is {self.layers!r}; it must list layers of the teacher, counted from 1 (0 is the embeddings), "
                "such as [3, 6]."
            )
        object.__setattr__(self, "layers", tuple(sorted({*numbers})))

    def capture(self, found: Any, mask: Tensor, keys: Sequence[bytes]) -> list[Columns]:
        """Returns `layer_N` [tokens, hidden size] of each row."""
        return _by_row({f"layer_{layer}": _half(found[layer][mask]) for layer in self.layers}, mask)

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


def _check_count(value: object, name: Literal["k", "n"]) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be a whole number of tokens, not {value!r}.")
    if value < 1:
        raise DefinitionError(f"{name} is {value}; at least one token must be stored at each position.")


def _starts(count: int) -> range:
    return range(0, max(count, 1), _POSITIONS_A_TIME)


def _half(values: Tensor) -> Array:
    # -∞ stays: it is a probability of 0.
    finite = torch.where(values.isneginf(), values, values.clamp(-_HALF, _HALF))
    return finite.to(torch.float16).cpu().numpy()


def _by_row(arrays: Mapping[str, Array], mask: Tensor) -> list[Columns]:
    ends = mask.sum(-1).cumsum(0).tolist()
    return [
        {name: array[start:end].reshape(-1) for name, array in arrays.items()}
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _at_positions(values: Array, mask: Tensor) -> Tensor:
    """Returns values of the positions of a mask as a tensor of its shape and their own width, 0 elsewhere."""
    flat = torch.from_numpy(np.ascontiguousarray(values)).to(mask.device).view(int(mask.sum()), -1)
    shown = flat.new_zeros(*mask.shape, flat.shape[-1])
    shown[mask] = flat
    return shown
