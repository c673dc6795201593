"""Mixed: another method, or other bits, for each part of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from datadreamer_like.compression import Batches, CompressesWhileTraining, CompressionMethod
from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.formats.modules import linears, matches, token_embeddings

from .absmax import AbsMax


@dataclass(frozen=True)
class Mixed(CompressionMethod):
    """Quantizes layers by a method for each pattern of names; for a layer, the first pattern that matches counts.

    Layers that match none stay as they are: find out by `evaluation.sensitivity` which ones cost most at few bits, and
    give them more. Methods that need no data are applied first; those that calibrate see a model in which the other
    parts are quantized.

    Attributes:
        methods: A method of this package for each pattern of module names, as in {"*.mlp.*": GPTQ(3), "*": GPTQ(4)}; a
            pattern also matches the modules inside a module of that name. Methods that train, or change more than
            layers, such as `QAT` and `Cast`, are refused.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
        >>> small = Mixed({"0": AbsMax(4, granularity=32), "*": AbsMax(8)}).apply(model)
        >>> small[0].bits, small[1].bits
        (4, 8)
    """

    methods: Mapping[str, CompressionMethod] = dataclasses.field(hash=False)

    kind = "quantization"
    layer_by_layer = True

    def __post_init__(self) -> None:
        if not isinstance(self.methods, Mapping):
            raise ArgumentTypeError(f"Mixed takes a method for each pattern of names, as a dict; got {self.methods!r}.")
        if not self.methods:
            raise DefinitionError('Mixed got no method. Pass at least one, as in {"*": AbsMax(4)}.')
        for pattern, method in self.methods.items():
            if not isinstance(pattern, str):
                raise ArgumentTypeError(f"Mixed takes patterns of names as keys, not {pattern!r:.100}.")
            if not isinstance(method, CompressionMethod) or method.kind != self.kind:
                raise ArgumentTypeError(f'The method for "{pattern}" is {method!r}; it must be one of quantization.')
            if isinstance(method, CompressesWhileTraining) or not hasattr(method, "exclude"):
                raise DefinitionError(
                    f'The method for "{pattern}" is {method}, which changes a whole model. Apply it by itself.'
                )
        # What the stage and `apply` read of the class depends on the methods here.
        given = [*self.methods.values()]
        object.__setattr__(self, "methods", dict(self.methods))
        object.__setattr__(self, "needs_calibration", any(method.needs_calibration for method in given))
        object.__setattr__(self, "needs_gradients", any(method.needs_gradients for method in given))
        object.__setattr__(self, "papers", tuple(dict.fromkeys(p for method in given for p in method.papers)))

    @classmethod
    def example(cls) -> Self:
        """Four bits for some layers, eight for the others."""
        return cls({"*.0.*": AbsMax(4, granularity=16), "*": AbsMax(8)})

    def fits(self, model: nn.Module) -> str | None:
        """A model that each method fits, with layers for each pattern."""
        names = [*linears(model), *token_embeddings(model)]
        for pattern, method in self._restricted(model):
            taken = list(dict.fromkeys(self._first(name) for name in names if matches(name, (pattern,))))
            if taken and pattern not in taken:
                return (
                    f'all layers of the pattern "{pattern}" also match "{taken[0]}", which comes first and so counts. '
                    "Put the narrower pattern first."
                )
            if reason := method.fits(model):
                return f'for the pattern "{pattern}" and {type(method).__name__}, {reason}'
        return None

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Applies the methods in place."""
        for _, method in sorted(self._restricted(model), key=lambda pair: pair[1].needs_calibration):
            with torch.set_grad_enabled(method.needs_gradients):
                method.change(model, calibration)

    def _restricted(self, model: nn.Module) -> list[tuple[str, CompressionMethod]]:
        """The methods by pattern, each excluding all modules but its own."""
        names = [*linears(model), *token_embeddings(model)]
        found = []
        for pattern, method in self.methods.items():
            others = tuple(name for name in names if self._first(name) != pattern)
            options: Any = {"exclude": (*getattr(method, "exclude", ()), *others)}
            found.append((pattern, dataclasses.replace(method, **options)))  # type: ignore[type-var]
        return found

    def _first(self, name: str) -> str | None:
        """The first pattern that a layer's name matches."""
        return next((pattern for pattern in self.methods if matches(name, (pattern,))), None)
