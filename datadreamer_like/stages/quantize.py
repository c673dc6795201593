"""The stage that stores a model's weights in fewer bits."""

from __future__ import annotations

from typing import Any

from datadreamer_like.quantization import DynamicInt8

from .compression import Compression


class Quantize(Compression):
    """Quantizes a model with a method of `datadreamer_like.quantization`; see `Compression` for the arguments.

    The result computes with the quantized weights, also when it is loaded in another process with `TrainedModel.load`
    or `from_pretrained`.

    Example:
        >>> small = Quantize("8 bit", model=student, method=quantization.DynamicInt8())  # doctest: +SKIP
        >>> small.export(to="student-int8")  # doctest: +SKIP
    """

    method_kind = "quantization"

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        return {"model": model, "method": DynamicInt8.example()}
