"""The queries, keys and values of a model's attentions, captured while it runs with any attention kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.formats.modules import ATTENTIONS, AttentionForm

from .outputs import Projections


class AttentionLayer(NamedTuple):
    """One attention of a model: its module, how that names its parts, and the features of one head."""

    module: nn.Module
    form: AttentionForm
    head_size: int
    causal: bool

    @property
    def widths(self) -> tuple[int, int]:
        """Returns the features of all heads of the queries, and of the keys and the values."""
        queries, keys = (self._features(path) for path in (self.form.query, self.form.key))
        if not self.form.fused:
            return queries, keys
        groups = getattr(self.module.get_submodule(self.form.core), self.form.groups) if self.form.groups else None
        keys = queries // 3 if groups is None else self.head_size * int(groups)
        return queries - 2 * keys, keys

    def _features(self, path: str) -> int:
        linear: Any = self.module.get_submodule(path)
        # `Conv1D` has its weight transposed.
        return int(getattr(linear, "out_features", linear.weight.shape[-1]))

    @property
    def heads(self) -> int:
        """Number of heads of the queries."""
        return self.widths[0] // self.head_size


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """Finds the attentions of an encoder or decoder, in the order of its layers; an adapter's are found too.

    Raises:
        MethodMisfit: It is an encoder-decoder, or its attentions are of no known class.
    """
    found = []
    for module in model.modules():
        form = ATTENTIONS.get(type(module).__name__)
        if form is not None:
            core: Any = module.get_submodule(form.core)
            causal = bool(getattr(core, "is_causal", False))
            found.append(AttentionLayer(module, form, int(getattr(core, form.head_size)), causal))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) or not found:
        known = ", ".join(sorted(name.removesuffix("Attention") for name in ATTENTIONS))
        raise MethodMisfit(
            f"The queries, keys and values of {type(model).__name__} are not available. Use an encoder or decoder with "
            f"one of these attentions: {known}; or another objective: HiddenStates(teacher)."
        )
    return found


@contextmanager
def capture_projections(model: nn.Module) -> Iterator[list[Projections]]:
    """Captures queries, keys and values in the block, in which the model runs once; they are in the list after it.

    Works with every attention kernel, since it reads the outputs of the projections. Gradients flow through them.

    Example:
        >>> with capture_projections(model) as layers:  # doctest: +SKIP
        ...     model(**batch)
        >>> layers[-1].queries.shape  # doctest: +SKIP
        torch.Size([8, 12, 128, 32])
    """
    layers, found = attention_layers(model), list[Projections]()
    outputs: list[dict[str, Tensor]] = [{} for _ in layers]
    handles = []
    for layer, seen in zip(layers, outputs, strict=True):
        for path in dict.fromkeys((layer.form.query, layer.form.key, layer.form.value)):
            hook = _keep(seen, path)
            handles.append(layer.module.get_submodule(path).register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for layer, seen in zip(layers, outputs, strict=True):
        form = layer.form
        if form.fused:
            parts: tuple[Tensor, ...] = form.split(layer.module.get_submodule(form.core), seen[form.query])
        else:
            parts = tuple(seen[path] for path in (form.query, form.key, form.value))
        shape = (*parts[0].shape[:2], -1, layer.head_size)
        queries, keys, values = (part.reshape(shape).transpose(1, 2) for part in parts)
        found.append(Projections(queries, keys, values, layer.causal))


def _keep(seen: dict[str, Tensor], path: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[path] = output

    return hook
