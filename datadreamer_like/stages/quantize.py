"""The stage that stores a model's weights in fewer bits."""

from __future__ import annotations

from typing import Any

from datadreamer_like.quantization import DynamicInt8

from .retraining import RetrainedCompression


class Quantize(RetrainedCompression):
    """Quantizes a model with a method of `datadreamer_like.quantization`.

    The result computes with the quantized weights, also when it is loaded in another process with `TrainedModel.load`
    or `from_pretrained`.

    Args:
        name, model, method, calibration, calibration_labels: See `Compression`, also for `**options`.
        retrain: For methods that quantize while a model is trained, such as `quantization.QAT`: arguments of the
            trainer's `train`, which are the four columns, optionally an objective, and training options. A killed run
            resumes. Without it these methods train on the calibration batches. Others are refused, since quantized
            weights cannot be trained.

    Raises:
        DataDreamerError: See `Compression` and the trainer's `train`.

    Example:
        >>> small = Quantize("8 bit", model=student, method=quantization.DynamicInt8())  # doctest: +SKIP
        >>> small.export(to="student-int8")  # doctest: +SKIP
    """

    result_version = 2
    method_kind = "quantization"
    retrains_results = False

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        return {"model": model, "method": DynamicInt8.example()}
