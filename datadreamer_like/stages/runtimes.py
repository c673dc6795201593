"""Models of a comparison on other runtimes: exported for the time of the work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, did_you_mean
from datadreamer_like.models.exports.report import ONNX_NAME, Runtime
from datadreamer_like.models.trained.ensemble_model import EnsembleModel
from datadreamer_like.models.trained.trained_model import TrainedModel

_PRECISIONS = {
    ("int8", None): "int8",
    ("llm_int8", None): "int8",
    ("uniform", 8): "int8",
    ("nf4", None): "int4",
    ("uniform", 4): "int4",
}
"""Precision of the graph by the kind of a quantized model's layout, and its bits where the kind has several."""


def check_runtimes(runtimes: object, what: str) -> tuple[Runtime, ...]:
    """Returns the runtimes; raises `DefinitionError` or `ArgumentTypeError` if they are none."""
    known = get_args(Runtime)
    if isinstance(runtimes, str) or not isinstance(runtimes, Sequence) or not runtimes:
        raise ArgumentTypeError(f"{what}: runtimes must be a list, such as {list(known)}, not {runtimes!r}.")
    for runtime in runtimes:
        if runtime not in known:
            hint = did_you_mean(str(runtime), known)
            raise DefinitionError(f'{what}: there is no runtime "{runtime}". There are: {", ".join(known)}.{hint}')
    return tuple(dict.fromkeys(runtimes))


def with_runtime(trained: TrainedModel, runtime: Runtime, what: str) -> TrainedModel:
    """Returns the model on a runtime.

    Raises:
        DefinitionError: It cannot run there.
    """
    if trained.runtime == runtime:
        return trained
    if trained.runtime != "torch":
        raise DefinitionError(f"{what}: {trained!r} was opened on {trained.runtime}. Compare it without runtimes.")
    if isinstance(trained, EnsembleModel):
        raise DefinitionError(f"{what}: {trained!r} has no files to export. Compare its members on {runtime}.")
    if trained.task != "text-classification":
        raise DefinitionError(f"{what}: {trained!r} does {trained.task}; only classifiers are compared on {runtime}.")
    if precision_of(trained) is None:
        raise DefinitionError(
            f"{what}: graphs have weights of 8 or 4 bits, or of 32, and {trained!r} is quantized in another form. "
            "Compare it on torch."
        )
    return TrainedModel(trained.path, node=trained.node, runtime=runtime)


@contextmanager
def exported(trained: TrainedModel) -> Iterator[TrainedModel]:
    """Yields a model that can run: on another runtime than torch, an export that is deleted after the block.

    A quantized model is exported in as many bits, from the model before quantization.
    """
    if trained.runtime == "torch" or (Path(trained.path) / ONNX_NAME).is_file():
        yield trained
        return
    with tempfile.TemporaryDirectory() as folder:
        source = TrainedModel(trained.path, node=trained.node)
        source.export("onnx", to=Path(folder) / "model", precision=precision_of(trained))
        yield TrainedModel.load(Path(folder) / "model", runtime=trained.runtime)


def precision_of(trained: TrainedModel) -> str | None:
    """Returns the precision of a graph with as many bits as a model's weights; None if there is none."""
    from datadreamer_like.formats.layout import kind_of

    saved = getattr(trained.config, "quantization_config", None) or {}
    coded = [entry for entry in saved.get("layouts", ()) if not kind_of(entry).trainable]
    found = {_PRECISIONS.get((entry["kind"], entry.get("bits"))) for entry in coded}
    return "fp32" if not found else found.pop() if len(found) == 1 else None
