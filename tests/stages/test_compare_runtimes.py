"""Compare measures one model on several runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.models import EnsembleModel, TrainedModel
from datadreamer_like.quantization import GOBO, GPTQ, NF4, AbsMax, Cast, DynamicInt8, LLMInt8, Mixed
from datadreamer_like.stages import Compare, Quantize
from datadreamer_like.stages.runtimes import precision_of
from datadreamer_like.steps import DataSource

from .conftest import rows

Column = Callable[[str], Any]
QUICK: dict[str, Any] = {
    "repeats": 1, "threads": 1, "latency_texts": 2, "throughput_texts": 4, "resamples": 100,
}  # fmt: skip


@pytest.mark.slow
def test_each_model_is_measured_on_each_runtime_and_once(good: Path, tmp_path: Path):
    def compare() -> Compare:
        with DataDreamer(tmp_path / "session", verbose=False):
            texts, labels = rows(40, 7)
            held_out = DataSource("Held out", data={"text": texts, "label": labels}).output
            small = Quantize("8 bit", good, DynamicInt8())
            return Compare(
                "Where it runs", [good, small], held_out["text"], held_out["label"], names=["whole", "8 bit"],
                baseline="8 bit", runtimes=["torch", "onnx"], **QUICK,
            )  # fmt: skip

    compared = compare()
    assert [row["model"] for row in compared.rows] == ["whole", "whole (onnx)", "8 bit", "8 bit (onnx)"]
    assert list(compared.predictions["whole"]) == list(compared.predictions["whole (onnx)"])
    assert [row["parameters"] for row in compared.rows] == [compared.rows[0]["parameters"]] * 4
    _, graph, _, small_graph = (row["bytes_on_disk"] for row in compared.rows)
    assert small_graph < graph
    assert all(row["latency"].value > 0 for row in compared.rows)
    assert compared.rows[2]["accuracy_difference"] is None  # the baseline is the quantized model in torch
    assert compare().rows == compared.rows  # to the last digit of the times


@pytest.mark.parametrize(
    ("runtimes", "kind", "message"),
    [
        (["onyx"], DefinitionError, 'no runtime "onyx".*Did you mean "onnx"'),
        ("onnx", ArgumentTypeError, "runtimes must be a list"),
        ([], ArgumentTypeError, "runtimes must be a list"),
    ],
)
def test_unknown_runtimes_are_refused_before_any_work(
    session: DataDreamer, good: Path, column: Column, runtimes: Any, kind: type[Exception], message: str
):
    with pytest.raises(kind, match=message):
        Compare("Refused", [good], column("text"), column("label"), runtimes=runtimes, **QUICK)


def test_models_that_cannot_run_there_are_refused_by_name(
    session: DataDreamer, good: Path, tiny_causal_lm: Path, column: Column
):
    with pytest.raises(DefinitionError, match="text-generation; only classifiers are compared on onnx"):
        Compare("Refused", [tiny_causal_lm], column("text"), column("label"), runtimes=["onnx"], **QUICK)
    both = EnsembleModel([TrainedModel(good), TrainedModel(good)])
    with pytest.raises(DefinitionError, match="has no files to export"):
        Compare("Refused", [both], column("text"), column("label"), runtimes=["onnx"], **QUICK)


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        (AbsMax(8, "row"), "int8"),
        (LLMInt8(), "int8"),
        (DynamicInt8(), "int8"),
        (AbsMax(4, 16), "int4"),
        (NF4(32), "int4"),
        (Cast(), "fp32"),
    ],
)
def test_a_quantized_model_runs_in_as_many_bits_on_another_runtime(
    session: DataDreamer, good: Path, method: Any, precision: str
):
    assert precision_of(Quantize("Few bits", good, method).trained) == precision


@pytest.mark.parametrize(
    "method", [GOBO(), AbsMax(3, 16), GPTQ(3, 16), Mixed({"*.0.*": AbsMax(4, 16), "*": AbsMax(8)})]
)
def test_bits_that_another_runtime_has_not_are_refused_not_measured_in_fp32(
    session: DataDreamer, good: Path, column: Column, method: Any
):
    small = Quantize("Few bits", good, method, calibration=column("text"))
    with pytest.raises(DefinitionError, match="graphs have weights of 8 or 4 bits.*Compare it on torch"):
        Compare("Refused", [good, small], column("text"), column("label"), runtimes=["onnx"], **QUICK)
