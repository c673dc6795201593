"""Several rows in one sequence, each of which attends to itself alone."""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from datadreamer_like.distillation import Outputs
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import MethodMisfit

from .examples import Examples

_ADVICE = "Train without packing=True: batches are of rows of similar length anyway."


class PackedExamples(Examples):
    """Sequences of rows of a causal task: `input_ids` and `labels` one after the other, `position_ids` from 0 in each.

    As position ids start again with each row, models of transformers let a row attend to itself alone: by a
    block-diagonal mask, or in flash attention by the rows' lengths.

    Attributes:
        rows: The rows, each by itself.
        packs: The indices of the rows of each sequence.
    """

    def __init__(self, rows: Examples, max_length: int, seed: int) -> None:
        self.rows = rows
        self.packs = pack(rows.lengths, max_length, seed)
        super().__init__({}, np.array([rows.lengths[pack].sum() for pack in self.packs]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = [self.rows[row] for row in self.packs[index]]
        labels = [row["labels"].copy() for row in rows]
        for own in labels:
            own[0] = IGNORED_LABEL  # the row before does not predict it
        return {
            "row": index,
            "input_ids": np.concatenate([row["input_ids"] for row in rows]),
            "labels": np.concatenate(labels),
            "position_ids": np.concatenate([np.arange(len(row["input_ids"])) for row in rows]),
        }


def pack(lengths: np.ndarray[Any, Any], max_length: int, seed: int) -> list[list[int]]:
    """Returns the rows of each sequence of up to `max_length` tokens: the longest row first, each where it fits best.

    Rows of one length are in random order, so that neighbours in the data are not always together.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    packs: list[list[int]] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)
    rooms: list[int] = []  # the keys of `with_room`, sorted
    for row in order.tolist():
        length = int(lengths[row])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            packs.append([])
            index, room = len(packs) - 1, max_length
        else:
            room = rooms[place]
            index = with_room[room].pop()
            if not with_room[room]:
                del rooms[place]
        packs[index].append(row)
        left = room - length
        if not with_room[left]:
            insort(rooms, left)
        with_room[left].append(index)
    return packs


def check_packing(model: Any, vocabulary: int, device: torch.device, whose: str) -> None:
    """Raises `MethodMisfit` if a row's logits depend on the row before it in a sequence, or on its place there.

    The model runs on a few random tokens, since not every architecture separates packed rows. The gradient with respect
    to the row before must be zero, which shows a dependence that is too small to see in the logits of new weights.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(bare.forward).parameters:
        raise MethodMisfit(
            f"{whose}, {type(bare).__name__}, takes no position_ids, so rows in one sequence would see each other. "
            f"{_ADVICE}"
        )
    if not getattr(model, "is_quantized", False):
        model.to(device)
    random = torch.Generator().manual_seed(0)
    before, row = (torch.randint(vocabulary, (1, n), generator=random).to(device) for n in (6, 9))
    start = before.shape[1]
    places = torch.cat([torch.arange(part.shape[1], device=device) for part in (before, row)])
    with eval_mode(model), _embedded(model) as embeddings, torch.enable_grad():
        found = model(**packed_inputs(model, torch.cat([before, row], 1), places[None]), use_cache=False).logits
        (gradient,) = torch.autograd.grad(found[:, start:].float().square().sum(), embeddings)
        with torch.no_grad():
            alone = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
    tolerance = 1e-4 if alone.dtype in (torch.float32, torch.float64) else 0.05
    far = (found[:, start:] - alone).abs().max() > tolerance * alone.abs().max()
    if far or gradient[:, :start].abs().max() > 1e-7 * gradient[:, start:].abs().max():
        raise MethodMisfit(
            f"{whose}, {type(bare).__name__}, does not separate rows in one sequence: their logits differ from those "
            f"of the same rows alone. {_ADVICE}"
        )


@contextmanager
def _embedded(model: Any) -> Iterator[list[torch.Tensor]]:
    """Yields a list to which the model's first run in the block adds its embeddings of tokens, with gradients."""
    found: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not found:
            found.append(output.detach().requires_grad_())
            return found[0]
        return output

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def packed_inputs(model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    """Returns a model's arguments for packed sequences [batch, seq].

    For flash attention, which takes the rows' lengths from position ids, the batch is one sequence [1, batch × seq].
    """
    if str(getattr(model.config, "_attn_implementation", "")).startswith("flash"):
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
    return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": None}


def as_batch(outputs: Outputs, size: int) -> Outputs:
    """Returns outputs of one sequence [1, size × seq, ...] as those of a batch [size, seq, ...]."""

    def split(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(size, -1, *value.shape[2:])

    states = None if outputs.hidden_states is None else tuple(map(split, outputs.hidden_states))
    return replace(outputs.at(split), hidden_states=states)
