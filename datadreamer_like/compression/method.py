"""The base of every pruning and quantization method: options, a check that the method fits, and `apply`."""

from __future__ import annotations

import copy
import fnmatch
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar, overload

import torch
from torch import nn

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit
from datadreamer_like.formats import foreign, put_together
from datadreamer_like.formats.modules import stacked_experts
from datadreamer_like.formats.quantizer import has_codes
from datadreamer_like.formats.sparse import sparse_names

from .calibration import Batches, Corpus
from .experts import as_layers, take_apart
from .zeros import refilled

ModelT = TypeVar("ModelT", bound=nn.Module)
TokenizerT = TypeVar("TokenizerT")


class CompressionMethod(ABC):
    """An algorithm that makes a smaller copy of a model.

    A subclass is a frozen dataclass that implements `fits` and `change`, and sets class attributes as needed.
    `sparsity` always means the share removed.

    Attributes:
        kind: The stage that applies the method: "pruning" for `Prune`, "quantization" for `Quantize`.
        needs_calibration: Whether `apply` needs `calibration`.
        needs_gradients: Whether `change` runs with gradients enabled.
        changes_tokenizer: Whether the tokenizer is changed too. `calibration` is then texts, not batches.
        states_widths: False if layers end up with widths that no config of transformers states.
        layer_by_layer: Whether single linear layers are changed. Experts whose weights one tensor holds then have
            layers of their own while the method works.
        papers: arXiv ids of the method's papers, such as "2306.11695", cited on the card of a result.
        result_version: Incremented when the same options give another result.
    """

    kind: ClassVar[Literal["pruning", "quantization"]]
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    changes_tokenizer: ClassVar[bool] = False
    states_widths: ClassVar[bool] = True
    layer_by_layer: ClassVar[bool] = False
    papers: ClassVar[tuple[str, ...]] = ()
    result_version: ClassVar[int] = 1

    @classmethod
    def example(cls) -> Self:
        """A minimal instance that has an effect on a model of two layers, for tests and documentation."""
        return cls()

    @abstractmethod
    def fits(self, model: nn.Module) -> str | None:
        """The reason why the method does not fit this model, or None; checked before any work."""

    def why_not(self, model: nn.Module) -> str | None:
        """The reason why the method cannot be applied to this model, or None: `fits`, and whether the weights are good.

        Weights that are not finite are refused, also those that the method would not change: with them the model
        computes nothing, and what is measured on it is meaningless. So are adapters: what saves them leaves out the
        weights that they are on.
        """
        adapters = None
        if hasattr(model, "peft_config"):
            adapters = "it has adapters on its weights. Merge them first: model.merge_and_unload()."
        fitted = as_layers(model) if self.layer_by_layer else model
        return foreign(model) or adapters or self.fits(fitted) or why_not_finite(model.named_parameters())

    def why_only_here(self, model: nn.Module) -> str | None:
        """The reason why the result for this model loads only where this package does, or None.

        A stage says it before it begins. Codes of few bits and sparse storage are not asked about: they always need it.
        """
        return None if self.states_widths else "its layers will have different widths"

    def fits_tokenizer(self, model: nn.Module, tokenizer: Any) -> str | None:
        """The reason why the method cannot change this tokenizer, or None; asked if `changes_tokenizer`."""
        return None

    @abstractmethod
    def change(self, model: nn.Module, calibration: Any) -> None:
        """Makes the model, a copy, smaller in place, and records how it is stored with `formats.add_layout`.

        `calibration` is `Batches`, or None where none were given; a `Corpus` if the method `changes_tokenizer`.
        """

    @overload
    def apply(self, model: ModelT, calibration: Batches | Iterable[str] | None = None) -> ModelT: ...

    @overload
    def apply(
        self, model: ModelT, calibration: Batches | Iterable[str] | None = None, *, tokenizer: TokenizerT
    ) -> tuple[ModelT, TokenizerT]: ...

    def apply(self, model: ModelT, calibration: Batches | Iterable[str] | None = None, *, tokenizer: Any = None) -> Any:
        """Returns a smaller copy of the model; with a tokenizer, the pair of copies. The originals are not changed.

        `calibration` is batches as the model takes them, for methods that look at activations or gradients; texts for
        methods that change the tokenizer, which also need `tokenizer`. Raises `MethodMisfit` if the method does not fit
        the model or tokenizer, and `DefinitionError` if data or a tokenizer that it needs are missing.
        """
        with torch.no_grad():
            self._check(model, calibration, tokenizer)
        device = next(model.parameters(), torch.empty(0)).device.type
        # Tensors that are made in inference mode can never have gradients. Layers that are built draw random weights.
        # Under autocast sums would be of 16 bits.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.autocast(device, enabled=False):
            return self._applied(model, calibration, tokenizer)

    def _applied(self, model: nn.Module, calibration: object, tokenizer: Any) -> Any:
        try:
            small = copy.deepcopy(model)
        except RuntimeError as error:
            raise MethodMisfit(
                f"{self} changes a copy of {type(model).__name__}, which cannot be copied: {error}\n"
                "If it keeps tensors of an earlier forward pass, run it once in torch.no_grad() first."
            ) from error
        data: Any = calibration
        if self.changes_tokenizer:
            tokenizer = copy.deepcopy(tokenizer)
            data = Corpus(calibration, tokenizer)  # type: ignore[arg-type]
        exclude = getattr(self, "exclude", ())
        names = [*dict(model.named_modules()), *dict(model.named_parameters())]
        if self.layer_by_layer:
            take_apart(small, exclude)
            names += dict(small.named_modules())
        for pattern in exclude:
            if not fnmatch.filter(names, pattern):
                logging.getLogger("datadreamer_like").warning(
                    '%s: the pattern "%s" in exclude matches no name in the model.', self, pattern
                )
        with torch.set_grad_enabled(self.needs_gradients):
            self.change(small, data)
        self.warn_of_refilled(model, small)
        put_together(small)
        self.warn_of_left(small)
        return small if tokenizer is None else (small, tokenizer)

    def warn_of_refilled(self, before: nn.Module, after: nn.Module) -> None:
        """Warns if weights that were pruned to zero are other numbers in the quantized model."""
        if self.kind != "quantization":
            return
        lost, zeros = refilled(as_layers(before) if self.layer_by_layer else before, after)
        if lost:
            logging.getLogger("datadreamer_like").warning(
                "%s: %s of the %s weights that pruning had set to zero are other numbers now: its codes hold no exact "
                "zero for them. To keep the zeros use a method of evenly spaced codes, such as AbsMax, GPTQ, QAT or "
                "DynamicInt8, or NF4.",
                self,
                f"{lost:,}",
                f"{zeros:,}",
            )

    def warn_of_left(self, after: nn.Module) -> None:
        """Warns if a method of layers has left layers as they were, in tensors that cannot be taken apart."""
        if not self.layer_by_layer:
            return
        found, sparse = stacked_experts(after, getattr(self, "exclude", ())), set(sparse_names(after))
        left = {name: tensor for name, tensor in found.items() if name not in sparse or self.kind == "quantization"}
        if not left:
            return
        logging.getLogger("datadreamer_like").warning(
            '%s leaves %s weights as they are: "%s" and %d other tensors hold those of several layers each (experts, '
            "or heads), in a form that is not known here. Magnitude and Cast change them too.",
            self,
            f"{sum(tensor.numel() for tensor in left.values()):,}",
            next(iter(left)),
            len(left) - 1,
        )

    def _check(self, model: nn.Module, calibration: object, tokenizer: object) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(
                f"{self} is applied to a torch module, not {model!r:.100}. Pass a trainer, a stage or a folder to "
                f"stages.{'Prune' if self.kind == 'pruning' else 'Quantize'}, or its `.model` here."
            )
        reason = self.why_not(model)
        if reason is None and self.changes_tokenizer and tokenizer is not None:
            reason = self.fits_tokenizer(model, tokenizer)
        if reason:
            raise MethodMisfit(f"{self} does not fit {type(model).__name__}: {reason}")
        if self.changes_tokenizer and (calibration is None or tokenizer is None):
            raise DefinitionError(
                f"{self} changes the tokenizer to fit texts. Call apply(model, calibration=texts, tokenizer=tokenizer)."
            )
        if self.needs_calibration and calibration is None:
            raise DefinitionError(
                f"{self} measures the model on data, and got none. "
                "Pass calibration=batches, an iterable of dicts of tensors as the model takes them."
            )
        if isinstance(calibration, str):
            raise ArgumentTypeError("calibration is one text; it must be an iterable of texts. Put it into a list.")
        if isinstance(calibration, Mapping | torch.Tensor):
            raise ArgumentTypeError("calibration is one batch; it must be an iterable of batches. Put it into a list.")
        if calibration is not None and not isinstance(calibration, Iterable):
            raise ArgumentTypeError(f"calibration must be an iterable of batches, not {calibration!r:.100}.")


ONE_LAYER = "it is itself the layer to change. Put it into a module, such as nn.Sequential(layer)."
"""Why methods that replace or measure the layers of a model do not fit one layer."""


def already_quantized(model: nn.Module) -> str | None:
    """The reason why a method that needs the original weights does not fit a quantized model; None for others."""
    if has_codes(model):
        return "it is quantized already. Prune first, then quantize: start from the model before quantization."
    return None


def why_unquantizable(model: nn.Module, chosen: Collection[str], kinds: str) -> str | None:
    """The reason why a model cannot be quantized: no layer of these kinds was chosen, or it is one itself; or None."""
    if "" in chosen:
        return ONE_LAYER
    if not chosen and has_codes(model):
        return "it is quantized already. Start from the model as it was before."
    return None if chosen else f"it has no {kinds} that this method may quantize."


def why_shared(model: nn.Module, chosen: Mapping[str, nn.Module]) -> str | None:
    """The reason why a layer cannot be changed by itself: another place has the same weight; None if none has."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name, module in chosen.items():
        others = [other for other in owners[id(module.weight)] if other != name]
        if others:
            return (
                f'"{name}" is tied to "{others[0]}": both have one weight, which would be stored twice. '
                f'Exclude it, as in exclude=("{name}",), or give the two weights of their own first.'
            )
    return None


def why_not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The reason why a model with these weights, by name, is refused, or None: one holds infinities or NaN."""
    for name, weight in weights:
        if weight.is_floating_point() and not weight.isfinite().all():
            module, _, kind = name.rpartition(".")
            return (
                f'the {kind} of "{module}" holds infinities or NaN. '
                "The training that made it has diverged: train again with a lower learning rate."
            )
    return None


def check_patterns(exclude: object) -> None:
    """Raises `DefinitionError` if one text was passed instead of a tuple of patterns, else `ArgumentTypeError`."""
    if isinstance(exclude, str):
        raise DefinitionError(f'exclude is the text "{exclude}"; pass a tuple of patterns.')
    if not isinstance(exclude, list | tuple) or not all(isinstance(pattern, str) for pattern in exclude):
        raise ArgumentTypeError(f"exclude must be a tuple of patterns of names, not {exclude!r:.100}.")


def check_share(name: str, value: float) -> None:
    """Raises `DefinitionError` if a share is outside [0, 1), and `ArgumentTypeError` if it is not a number."""
    if not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name} must be a number, not {value!r}.")
    if not 0 <= value < 1:
        raise DefinitionError(f"{name} is {value}; it is the share removed, so it must be at least 0 and under 1.")
