"""Calibration data of compression methods, the loss on them, and a walk through the model block by block."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import DataError, EmptyDataset, MethodMisfit
from datadreamer_like.formats.modules import Stack, config_of_layers, stacks

from .batches import check_batch

LayerT = TypeVar("LayerT")
_SEQUENCE_FIRST = ("xlnet",)
"""Types of models whose hidden states are [seq, batch, hidden]."""
Batches = Iterable[Mapping[str, Tensor]]
"""Calibration data: batches as the model takes them, each a mapping of keyword to tensor."""


class Corpus(NamedTuple):
    """Texts as the model will see them, and a copy of its tokenizer that the method changes in place."""

    texts: Iterable[str]
    tokenizer: Any


def as_list(batches: Batches | None, model: nn.Module, method: object) -> list[Mapping[str, Tensor]]:
    """Returns the batches as a list, for a method that reads them several times.

    Raises:
        EmptyDataset: There is none, or all their tokens are padding.
        DataError, ArgumentTypeError: See `check_batch`, which looks at all of them first.
    """
    found = list(batches or ())
    if not found:
        raise EmptyDataset(f"{method} got no calibration batch. Pass at least one, better a hundred examples or more.")
    for batch in found:
        check_batch(batch, model)
    if not any(map(_has_tokens, found)):
        raise EmptyDataset(f"All tokens of the calibration batches are padding, so that {method} measures nothing.")
    return found


def _has_tokens(batch: object) -> bool:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return not isinstance(mask, Tensor) or bool(mask.any())


def check_measured(found: Tensor, what: str) -> None:
    """Raises `DataError` if what was measured on calibration data, as `what` says, holds NaN or infinities."""
    if not found.isfinite().all():
        raise DataError(
            f"{what} hold NaN or infinities for some calibration batch. Calibrate in float32, and check that the "
            "model's weights and outputs are finite."
        )


def warn_of_unreached(method: object, names: Collection[str], consequence: str) -> None:
    """Warns if the inputs of layers, by name, were zero for all calibration tokens, or there were none."""
    if names:
        logging.getLogger("datadreamer_like").warning(
            '%s: no calibration token reached "%s" and %d other layers, or only zeros did: %s.',
            method, next(iter(names)), len(names) - 1, consequence,
        )  # fmt: skip


def on_device(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns the batch on the device of the model's parameters; raises what `check_batch` does."""
    check_batch(batch, model)
    device = next(model.parameters()).device

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value.clone() if value.is_inference() else value).to(device)  # the former have no gradients

    return {name: moved(value) for name, value in batch.items()}


def loss_on(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the model's loss on a batch, with or without labels: a scalar that carries gradients.

    Without labels, the targets are a causal LM's input, or a classifier's most likely class of each text, or of each
    token that is not padding; of several classes at once, those above one half. The loss then shows which parts the
    model's current answers depend on, not which parts are useful for the task.

    Raises:
        DataError: The model returns neither a loss nor logits, as a bare encoder does, or there are no labels and it
            answers with numbers instead of classes: against its own answers its loss and all gradients are zero.
    """
    batch = on_device(batch, model)
    if "labels" not in batch and "input_ids" in batch and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        batch["labels"] = batch["input_ids"].masked_fill(mask == 0, -100)
    outputs: Any = model(**batch)
    loss, logits = getattr(outputs, "loss", None), getattr(outputs, "logits", None)
    if loss is None and isinstance(logits, Tensor):
        if not answers_with_classes(model, logits):
            raise DataError(
                f"{type(model).__name__} answers with a number, so that without labels its loss says nothing: give "
                "each calibration batch its labels, or a stage its calibration_labels."
            )
        labels = predicted(model, logits, batch)
        if labels.is_floating_point():
            return nn.functional.binary_cross_entropy_with_logits(logits, labels)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL)
    if not isinstance(loss, Tensor):
        raise DataError(
            f"{type(model).__name__} returned neither a loss nor logits for the calibration batch "
            f"({', '.join(batch)}). Load the model with its head, and give each batch its labels."
        )
    return loss


def answers_with_classes(model: nn.Module, logits: Tensor) -> bool:
    """Whether logits [..., outputs] are of classes, and not numbers as in regression or of a reward model."""
    return logits.shape[-1] > 1 and _problem(model) != "regression"


def predicted(model: nn.Module, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's own answers as labels: classes [...], -100 for padding; floats [..., classes] of several at once."""
    if _problem(model) == "multi_label_classification":
        return (logits > 0).to(logits)
    labels, mask = logits.argmax(-1), batch.get("attention_mask")
    return labels.masked_fill(mask == 0, IGNORED_LABEL) if mask is not None and mask.shape == labels.shape else labels


def _problem(model: Any) -> str | None:
    return getattr(getattr(model, "config", None), "problem_type", None)


@dataclass
class _Inputs:
    """Inputs of the blocks of one stack for one batch."""

    hidden: Tensor  # for the next block, [batch, seq, hidden]
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]  # the other ones, of each block
    mask: Tensor | None  # bool [batch, seq], False for padding; in the order of the tokens in `hidden`
    given_mask: Tensor | None  # of the encoder's hidden states among a decoder's arguments


class _Stop(Exception):
    """Ends a forward pass early."""


class Block:
    """One block of a model, with its name in the model, and the calibration data that reach it.

    A model without a list of blocks is one block, whose name is empty.
    """

    def __init__(self, name: str, module: nn.Module, index: int, inputs: list[_Inputs]) -> None:
        self.name, self.module = name, module
        self._index, self._inputs = index, inputs
        self._now: _Inputs | None = None

    def own(self, layers: Mapping[str, LayerT]) -> dict[str, LayerT]:
        """Returns those of the model's layers, by name, that are in the block."""
        return {name: layer for name, layer in layers.items() if not self.name or name.startswith(f"{self.name}.")}

    def path(self, name: str) -> str:
        """Returns the name in the block of a layer of this name in the model."""
        return name.removeprefix(f"{self.name}.") if self.name else name

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
        if mask is not None and hasattr(x, "token_rows"):
            return rows[mask.reshape(-1)[x.token_rows]]
        # Experts of unknown form get a subset of the tokens in another order: keep all of them.
        return rows if mask is None or mask.numel() != len(rows) else rows[mask.reshape(-1)]


class _Whole(Block):
    """A model as one block; its batches are the inputs."""

    def __init__(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
        super().__init__("", model, 0, [])
        self._batches, self._mask = batches, cast("Tensor | None", None)

    def outputs(self) -> Iterator[Any]:
        """Yields what the model returns for each calibration batch."""
        for batch in self._batches:
            self._mask = _mask(batch, "attention_mask")
            yield self.module(**batch)

    def tokens(self, x: Tensor) -> Tensor:
        """Returns the rows [rows, features] of an input [..., features] of a module, without padding."""
        rows = x.reshape(-1, x.shape[-1])
        if self._mask is not None and hasattr(x, "token_rows"):
            return rows[self._mask.reshape(-1)[x.token_rows]]
        return rows if self._mask is None or self._mask.shape != x.shape[:-1] else rows[self._mask.reshape(-1)]


@torch.no_grad()
def walk_blocks(model: nn.Module, calibration: Batches | None, method: object) -> Iterator[Block]:
    """Yields the blocks in the order in which they run; changes to a block affect the inputs of the next.

    A model without a list of blocks is yielded whole, as one block.

    Memory holds the hidden states of the calibration data. The model is in eval mode meanwhile.

    Raises:
        EmptyDataset: There is no batch.
        DataError: A batch for an encoder-decoder has nothing for the decoder, or the model's hidden states have another
            number of tokens than the batch, so that padding is unknown.
        MethodMisfit: The blocks do not each pass their first output to the next.
    """
    batches = as_list(calibration, model, method)
    with eval_mode(model), _without_cache(model):
        found = stacks(model)
        if not found:
            yield _Whole(model, [on_device(batch, model) for batch in batches])
        for number, stack in enumerate(found):
            inputs = [_captured(model, stack, on_device(batch, model), number > 0, method) for batch in batches]
            for index, module in enumerate(stack.blocks):
                block = Block(f"{stack.name}.{index}", module, index, inputs)
                yield block
                for batch, output in zip(inputs, block.outputs(), strict=True):
                    batch.hidden = output
                    batch.arguments[index] = ((), {})


def _captured(model: nn.Module, stack: Stack, batch: dict[str, Tensor], is_second: bool, method: object) -> _Inputs:
    """Captures the inputs of a stack, of which the second is an encoder-decoder's decoder.

    Only the first block runs. The others get its output, which has the right form, for what else they are given.
    """
    if is_second and not {"labels", "decoder_input_ids"} & set(batch):
        raise DataError(
            f"{type(model).__name__} is an encoder-decoder, and a calibration batch has only {', '.join(batch)}. "
            "Add labels, or decoder_input_ids, so that its decoder can be measured."
        )
    first: list[Tensor] = []
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    outputs: list[Any] = []

    def keep(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        is_named = "hidden_states" in kwargs
        hidden = kwargs["hidden_states"] if is_named else args[0] if args else None
        given = outputs[0][0] if outputs and isinstance(outputs[0], tuple) else outputs[0] if outputs else hidden
        if index != len(arguments) or not isinstance(hidden, Tensor) or not _is_same(hidden, given):
            raise MethodMisfit(
                f"{method} measures a model block by block, and {type(model).__name__} does not give "
                f'"{stack.name}.{index}" what the block before it puts out. Use a method that measures the whole model '
                "or needs no data, such as pruning.Magnitude or quantization.AbsMax."
            )
        if not first:
            first.append(hidden)
        arguments.append((args, {**kwargs, "hidden_states": None}) if is_named else (args[1:], kwargs))
        if len(arguments) == len(stack.blocks):
            raise _Stop

    with suppress(_Stop), ExitStack() as hooks:
        for index, block in enumerate(stack.blocks):
            hooks.enter_context(block.register_forward_pre_hook(partial(keep, index), with_kwargs=True))
        hooks.enter_context(stack.blocks[0].register_forward_hook(lambda *call: outputs.append(call[-1])))
        for block in stack.blocks[1:]:
            hooks.enter_context(_forward_gives(block, outputs))
        model(**batch)
    mask = own = _mask(batch, "attention_mask")
    if is_second:
        own = _mask(batch, "decoder_attention_mask")
        if own is None and "labels" in batch:
            own = batch["labels"] != -100
    own = tokens_mask(model, own)
    known = own if own is not None or is_second else tokens_mask(model, batch.get("input_ids"))
    check_tokens(model, first[0], known)
    return _Inputs(first[0], arguments, own, mask)


def _is_same(x: Tensor, other: Any) -> bool:
    return x is other or (x.shape == other.shape and torch.allclose(x, other, rtol=0, atol=0, equal_nan=True))


@overload
def tokens_mask(model: nn.Module, mask: Tensor) -> Tensor: ...
@overload
def tokens_mask(model: nn.Module, mask: Tensor | None) -> Tensor | None: ...
def tokens_mask(model: nn.Module, mask: Tensor | None) -> Tensor | None:
    """Returns a mask [batch, seq] in the order of the tokens in the model's hidden states."""
    is_sequence_first = getattr(config_of_layers(model), "model_type", None) in _SEQUENCE_FIRST
    return mask.T if mask is not None and is_sequence_first else mask


def check_tokens(model: nn.Module, hidden: Tensor, known: Tensor | None) -> None:
    """Raises `DataError` if hidden states [..., batch, seq, hidden] have other tokens than a mask or ids of a batch."""
    if known is not None and hidden.dim() > 2 and hidden.shape[-3:-1] != known.shape:
        raise DataError(
            f"A calibration batch has tokens [batch, seq] {list(known.shape)}, and inside {type(model).__name__} they "
            f"are {list(hidden.shape[-3:-1])}, so that padding would be measured as text. If the model fills sequences "
            "up to a multiple of its window or block, pass such lengths: "
            "tokenizer(texts, padding=True, pad_to_multiple_of=..., return_tensors='pt')."
        )


@contextmanager
def _forward_gives(module: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Inside, the module does nothing but return the first of the outputs; its hooks run."""
    before = vars(module).get("forward")
    module.forward = lambda *_, **__: outputs[0]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _mask(batch: dict[str, Tensor], name: str) -> Tensor | None:
    found = batch.get(name)
    return None if found is None or found.dim() != 2 else found.bool()


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Blocks that run several times must not add to a key/value cache."""
    configs: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    before = [(config, config.use_cache) for config in configs if hasattr(config, "use_cache")]
    try:
        for config, _ in before:
            config.use_cache = False
        yield
    finally:
        for config, value in before:
            config.use_cache = value
