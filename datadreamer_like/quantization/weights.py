"""The base of the methods that quantize the weights of linear layers, each layer by itself and without data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.method import check_patterns, why_shared, why_unquantizable
from datadreamer_like.formats import CodedModule, Entry, add_layout
from datadreamer_like.formats.modules import inner_linears, replace_modules, weight_of
from datadreamer_like.formats.uniform import UniformLinear

from .uniform import check_groups, uniform_layout


@dataclass(frozen=True)
class WeightQuantization(CompressionMethod):
    """Replaces the linear layers inside a model's blocks; in a model without blocks, all but output heads.

    A subclass defines `coded` and `layout`. Embeddings, heads, norms and biases are not quantized.

    The bytes are saved on disk, and in memory where weights are decoded for each product. That is slower than fp32 for
    a few rows, so on a CPU layers of under a million weights keep the decoded weight, but in training mode.

    Attributes:
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).
    """

    exclude: tuple[str, ...] = field(default=(), kw_only=True)

    kind = "quantization"
    layer_by_layer = True
    learned: ClassVar[bool] = False
    """Whether codes stand for other weights than the model has, learned from data: exports then start from them."""

    def __post_init__(self) -> None:
        check_patterns(self.exclude)

    @abstractmethod
    def coded(self, name: str, module: nn.Module) -> CodedModule:
        """Returns the quantized form of a layer of this name, whose weights are finite."""

    @abstractmethod
    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns the layout entry that describes the quantized layers, by name."""

    def chosen(self, model: nn.Module) -> dict[str, nn.Module]:
        """Returns the layers to quantize, by name."""
        found = inner_linears(model, self.exclude)
        return {name: module for name, module in found.items() if weight_of(module).numel()}

    def fits(self, model: nn.Module) -> str | None:
        """Any module with linear layers that are not quantized yet and share no weight, its adapters merged."""
        chosen = self.chosen(model)
        return why_unquantizable(model, chosen, "nn.Linear or Conv1D") or why_shared(model, chosen)

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Replaces the layers in place; calibration data are not used."""
        self.replace(model, self.chosen(model))

    def replace(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        """Replaces layers of the model, by name, by their quantized form, in place, and records how they are stored."""
        made = {name: self.coded(name, module) for name, module in layers.items()}
        replace_modules(model, made)
        self.record(model, made)

    def record(self, model: nn.Module, made: Mapping[str, Any]) -> None:
        """Records how layers that were replaced, by name, are stored."""
        add_layout(model, self.layout(made) | ({"learned": True} if self.learned else {}))


@dataclass(frozen=True)
class GroupQuantization(WeightQuantization):
    """Weights of few bits with a scale for each group of inputs, chosen block by block with calibration data.

    Attributes:
        bits: 2 to 8.
        group_size: Inputs that share a scale; the last group of a layer may be shorter.
        exclude: Patterns of module names to skip, with all modules inside them.
    """

    bits: int = 4
    group_size: int = 128

    learned = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.bits, self.group_size)

    def empty(self, layer: nn.Module) -> UniformLinear:
        """Returns the quantized form of a layer, without its codes."""
        return UniformLinear.like(layer, self.bits, self.group_size)

    def coded(self, name: str, module: nn.Module) -> UniformLinear:
        """Returns the layer with its weights rounded to the nearest codes."""
        made = self.empty(module)
        made.quantize(weight_of(module))
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns a "uniform" entry."""
        return uniform_layout(made, self.bits, self.group_size)
