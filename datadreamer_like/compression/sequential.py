"""Walks through a model block by block; each block gets the outputs of the already changed blocks before it.

Wanda, SparseGPT and GPTQ measure one block, change it, and continue with its new outputs. Memory holds the hidden
states of the calibration data and the measurements of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import DataError
from datadreamer_like.formats.modules import Stack, stacks

from .calibration import Batches, as_list, on_device


@dataclass
class _Inputs:
    """Inputs of the blocks of one stack for one batch.

    Attributes:
        hidden: Hidden states [batch, seq, hidden] for the next block.
        arguments: The other arguments of each block.
        mask: Bool [batch, seq], False for padding.
        given_mask: The mask for the encoder's hidden states among a decoder's arguments.
    """

    hidden: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]
    mask: Tensor | None
    given_mask: Tensor | None


class _Stop(Exception):
    """Ends a forward pass early."""


class Block:
    """One block of a model, and the calibration data that reach it.

    Attributes:
        name: Name of the block in the model.
        module: The block.
    """

    def __init__(self, name: str, module: nn.Module, index: int, inputs: list[_Inputs]) -> None:
        self.name, self.module = name, module
        self._index, self._inputs = index, inputs
        self._now: _Inputs | None = None

    def run(self) -> None:
        """Runs the block on all calibration data, for hooks on its modules; the results are dropped."""
        for _ in self.outputs():
            pass

    def outputs(self) -> Iterator[Tensor]:
        """Yields the block's output for each calibration batch: [batch, seq, hidden]."""
        for inputs in self._inputs:
            self._now = inputs
            args, kwargs = inputs.arguments[self._index]
            if "hidden_states" in kwargs:
                found = self.module(*args, **{**kwargs, "hidden_states": inputs.hidden})
            else:
                found = self.module(inputs.hidden, *args, **kwargs)
            yield found[0] if isinstance(found, tuple) else found
        self._now = None

    def tokens(self, x: Tensor) -> Tensor:
        """Returns the tokens [tokens, features] of an input [..., features] of a module in the block, without padding.

        Call it in a hook, while the block runs. For cross-attention it uses the encoder's padding.
        """
        assert self._now is not None, "a block's tokens are known while it runs"
        rows = x.reshape(-1, x.shape[-1])
        args, kwargs = self._now.arguments[self._index]
        is_given = any(x is value for value in (*args, *kwargs.values()))
        mask = self._now.given_mask if is_given else self._now.mask
        # Experts get a subset of the tokens in another order: keep all of them.
        return rows if mask is None or mask.numel() != len(rows) else rows[mask.reshape(-1)]


@torch.no_grad()
def walk_blocks(model: nn.Module, calibration: Batches | None, method: object) -> Iterator[Block]:
    """Yields the blocks in the order in which they run; changes to a block affect the inputs of the next.

    Args:
        model: A model whose blocks each pass their first output to the next; it is in evaluation mode meanwhile.
        calibration: Batches as the model takes them.
        method: The calling method, for the error message.

    Raises:
        EmptyDataset: There is no batch.
        DataError: A batch for an encoder-decoder has nothing for the decoder.
    """
    batches = as_list(calibration, method)
    with eval_mode(model), _without_cache(model):
        for number, stack in enumerate(stacks(model)):
            inputs = [_captured(model, stack, on_device(batch, model), is_second=number > 0) for batch in batches]
            for index, module in enumerate(stack.blocks):
                block = Block(f"{stack.name}.{index}", module, index, inputs)
                yield block
                for batch, output in zip(inputs, block.outputs(), strict=True):
                    batch.hidden = output
                    batch.arguments[index] = ((), {})


def _captured(model: nn.Module, stack: Stack, batch: dict[str, Tensor], is_second: bool) -> _Inputs:
    """Runs the model once and captures the first block's hidden states and each block's other arguments.

    In an encoder-decoder the decoder is the second stack.
    """
    if is_second and not {"labels", "decoder_input_ids"} & set(batch):
        raise DataError(
            f"{type(model).__name__} is an encoder-decoder, and a calibration batch has only {', '.join(batch)}. "
            "Add labels, or decoder_input_ids, so that its decoder can be measured."
        )
    first: list[Tensor] = []
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if not first:
            first.append(hidden)
        if "hidden_states" in kwargs:
            arguments.append((args, {**kwargs, "hidden_states": None}))
        else:
            arguments.append((args[1:], kwargs))
        if len(arguments) == len(stack.blocks):
            raise _Stop

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in stack.blocks]
    try:
        with suppress(_Stop):
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    mask = own = _mask(batch, "attention_mask")
    if is_second:
        own = _mask(batch, "decoder_attention_mask")
        if own is None and "labels" in batch:
            own = batch["labels"] != -100
    return _Inputs(first[0], arguments, own, mask)


def _mask(batch: dict[str, Tensor], name: str) -> Tensor | None:
    found = batch.get(name)
    return None if found is None or found.dim() != 2 else found.bool()


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Blocks that run several times must not add to a key/value cache."""
    configs: dict[int, Any] = {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }
    before = {key: config.use_cache for key, config in configs.items() if hasattr(config, "use_cache")}
    try:
        for key in before:
            configs[key].use_cache = False
        yield
    finally:
        for key, value in before.items():
            configs[key].use_cache = value
