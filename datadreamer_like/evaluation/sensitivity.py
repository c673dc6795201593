"""Which layers hurt at which bits: the divergence of a model's output when one of its layers is quantized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from datadreamer_like.errors import (
    DataError,
    DefinitionError,
    EmptyDataset,
    MethodMisfit,
    check_number,
    check_sequence,
)
from datadreamer_like.models.quiet import quiet
from datadreamer_like.report import Table, TableColumn, curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

By = Literal["layer", "block"]


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` measured.

    Attributes:
        divergences: Nats by bits, for each layer or block by name, in the order of the model: the mean of
            `KL(p ‖ p')` over texts, over the classes of each text where each is a decision of its own, or over tokens
            of a language model, where p' is the output with that part quantized; infinite where that is NaN.
    """

    divergences: dict[str, dict[int, float]]

    @property
    def bits(self) -> list[int]:
        """The bits that were tried, most first."""
        return sorted(next(iter(self.divergences.values())), reverse=True)

    def most_sensitive(self, bits: int, count: int) -> list[str]:
        """Returns the names of the parts that cost most at so many bits, worst first: patterns for `Mixed`."""
        if bits not in self.bits:
            raise DefinitionError(f"{bits!r} bits were not measured; {', '.join(map(str, self.bits))} were.")
        return sorted(self.divergences, key=lambda name: -self.divergences[name][bits])[:count]

    def table(self) -> Table:
        """Returns a row for each part, in the order of the model."""
        columns = [TableColumn("part", "quantized alone", align="left")]
        columns += [TableColumn(str(bits), f"{bits} bits", "mnat", ",.3g", 1e3) for bits in self.bits]
        rows = [
            {"part": name, **{str(bits): value for bits, value in found.items()}}
            for name, found in self.divergences.items()
        ]
        return Table(columns, rows)

    def plot(self) -> Figure:
        """Returns a figure with a curve for each number of bits over the parts, in the order of the model."""
        found = list(self.divergences.values())
        lines = {f"{bits} bits": (range(len(found)), [each[bits] for each in found]) for bits in self.bits}
        figure = curves(lines, "layer or block, in the order of the model", "KL divergence of the output, nats")
        figure.axes[0].set_yscale("log")
        return figure

    def __str__(self) -> str:
        return str(self.table())


def sensitivity(
    student: object,
    texts: Sequence[str],
    bits: Sequence[int] = (8, 4, 3, 2),
    *,
    by: By = "layer",
    group_size: int | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
) -> Sensitivity:
    """Measures how far a model's output moves when one of its layers is rounded to few bits, for each layer.

    Rounding is `quantization.AbsMax`, without data, of weights; the other layers keep theirs. The model is not changed.
    It runs once for each part and number of bits on all texts: some tens of texts are enough to rank the layers.

    Args:
        student: A classifier or language model: a trainer, a stage, a `TrainedModel`, or a folder.
        texts: What it works on.
        bits: The bits to try, 2 to 8.
        by: "layer": each linear layer inside the blocks by itself. "block": all of a block together, in fewer runs.
        group_size: Inputs of an output feature that share a scale; None for all.
        batch_size: Texts in a batch.
        max_length: Texts are cut at this many tokens; None for the model's own limit.

    Raises:
        MethodMisfit: The model is quantized already, or has no logits or no layers to quantize.
        DataDreamerError: The texts, or an option, are refused.

    Example:
        >>> found = sensitivity(student, test["text"][:64], bits=(4, 3))  # doctest: +SKIP
        >>> mixed = Mixed({**{name: AbsMax(8) for name in found.most_sensitive(4, 3)}, "*": GPTQ(4)})  # doctest: +SKIP
    """
    from datadreamer_like.compression.experts import as_layers
    from datadreamer_like.models.trained.model_node import as_torch_model
    from datadreamer_like.models.trained.predictions import check_texts
    from datadreamer_like.quantization import AbsMax

    check_texts(texts)
    texts = list(texts)
    if not texts:
        raise EmptyDataset("texts is empty, and nothing can be measured without any. Pass some tens of typical texts.")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise DataError(f"texts has {wrong[0]!r:.100}, which is not a text.")
    if by not in get_args(By) or not bits:
        raise DefinitionError(f'by={by!r} and bits={bits!r} must be "layer" or "block", and at least one number.')
    check_sequence(bits, "bits", "numbers of bits")
    check_number(batch_size, "batch_size", 1, whole=True)
    check_number(max_length, "max_length", 1, whole=True, optional=True)
    methods = {each: AbsMax(each, "row" if group_size is None else group_size) for each in bits}
    trained = as_torch_model(student, "student")
    with quiet():
        model: Any = trained.model
        method = next(iter(methods.values()))
        if reason := method.why_not(model):
            raise MethodMisfit(f"sensitivity does not fit {type(model).__name__}: {reason}")
        model = as_layers(model)
        layers = method.chosen(model)
        parts = _parts(model, layers) if by == "block" else {name: [name] for name in layers}
        sums = {name: dict.fromkeys(methods, 0.0) for name in parts}
        count = 0
        for batch in _batches(trained, texts, batch_size, max_length):
            expected = _log_probabilities(model, batch)
            if expected.isnan().any():
                raise DataError(
                    f"The logits of {type(model).__name__} are NaN or infinite before anything is rounded, so nothing "
                    "can be compared. Load the model in float32, or look at how it was trained."
                )
            count += len(expected)
            for name, members in parts.items():
                for each, rounding in methods.items():
                    made = {member: rounding.coded(member, layers[member]) for member in members}
                    with _replaced(model, made):
                        found = _log_probabilities(model, batch)
                    sums[name][each] += _divergence(expected, found)
    # A divergence is not negative, but for rounding.
    return Sensitivity({name: {k: max(v / count, 0.0) for k, v in found.items()} for name, found in sums.items()})


def _divergence(expected: Tensor, found: Tensor) -> float:
    """The sum of `KL(p ‖ p')` over rows of log-probabilities; infinite where p' is NaN, or 0 where p is not."""
    possible = expected > float("-inf")  # the others add 0
    terms = expected[possible].exp() * (expected[possible] - found[possible])
    return float(terms.sum().nan_to_num(nan=float("inf"), posinf=float("inf")))


def _parts(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, list[str]]:
    from datadreamer_like.formats.modules import stacks

    blocks = [f"{stack.name}.{index}" for stack in stacks(model) for index in range(len(stack.blocks))]
    found = {block: [name for name in layers if name.startswith(f"{block}.")] for block in blocks}
    return {block: names for block, names in found.items() if names} or {name: [name] for name in layers}


def _batches(trained: Any, texts: Sequence[str], size: int, max_length: int | None) -> Iterator[dict[str, Tensor]]:
    from datadreamer_like.distillation.tokens import batch_of

    from .tasks.task import row_limit

    limit = row_limit(trained.config, trained.tokenizer, max_length)
    for start in range(0, len(texts), size):
        batch = batch_of(trained.tokenizer, list(texts[start : start + size]), limit)
        yield {name: value.to(trained.model.device) for name, value in batch.items()}


def _log_probabilities(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Returns log-probabilities of texts [texts, classes] or of tokens that are not padding [tokens, classes]."""
    import torch

    more = {"decoder_input_ids": batch["input_ids"]} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        logits = getattr(model(**batch, **more), "logits", None)
    if logits is None:
        raise MethodMisfit(f"sensitivity compares outputs, and {type(model).__name__} has no logits.")
    if logits.dim() == 3:
        logits = logits[batch["attention_mask"].bool()]
    if getattr(model.config, "problem_type", None) == "multi_label_classification":  # each class by itself
        logits = torch.stack([logits, torch.zeros_like(logits)], -1).flatten(0, 1)
    return logits.double().log_softmax(-1)


@contextmanager
def _replaced(model: nn.Module, made: dict[str, Any]) -> Iterator[None]:
    """Inside, some layers of the model are others."""
    before = {name: model.get_submodule(name) for name in made}
    try:
        for name, module in made.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)
