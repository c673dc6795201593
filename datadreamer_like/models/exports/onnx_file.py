"""ONNX: the graph that ONNX Runtime runs, in fp32, or with int8 or 4-bit weights."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from datadreamer_like.distillation.tokens import batch_of
from datadreamer_like.errors import DefinitionError, MethodMisfit

from ..trained.hf_source import forget_gguf
from ..trained.model_facts import task_of
from .export_format import ExportFormat, not_transformers
from .int4 import Codes
from .logits import logits_for_texts
from .onnx_model import OnnxModel
from .report import ONNX_NAME, OUTPUT

Precision = Literal["fp32", "int8", "int4"]
_TASKS = ("text-classification", "token-classification", "fill-mask", "feature-extraction")
_TOLERANCES = {"fp32": 1e-3, "int8": 0.3, "int4": 1.0}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_BLOCK = 32


@dataclass(frozen=True)
class ONNX(ExportFormat):
    """A folder with the graph, the config and the tokenizer, for `TrainedModel.load(folder, runtime="onnx")`.

    Attributes:
        precision: "fp32"; "int8": ONNX Runtime's dynamic quantization of matrices, with a scale for each output,
            and embeddings; activations as they come; "int4": weights in blocks of 32 (MatMulNBits), computed in int8
            where the processor can, embeddings as they are.
    """

    precision: Precision = "fp32"

    name = "onnx"
    runtime = "ONNX Runtime"
    modules = ("onnx", "onnxscript", "onnxruntime")

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise DefinitionError(f'precision is "{self.precision}"; choose one of {", ".join(get_args(Precision))}.')

    @property
    def exact(self) -> bool:
        """In fp32."""
        return self.precision == "fp32"

    @property
    def tolerance(self) -> float:
        """fp32 differs by the order of sums."""
        return _TOLERANCES[self.precision]

    def why_not(self, model: Any, tokenizer: Any) -> str | None:
        """Encoders, of any widths."""
        if reason := not_transformers(model):
            return reason
        if (task := task_of(model.config)) not in _TASKS:
            return (
                f"its task is {task}, and the graph has no key/value cache. Export it as "
                '"gguf" or "compressed-tensors", or, where these do not fit, as "safetensors".'
            )
        return _why_not_in_batches(model, tokenizer)

    def write(self, model: Any, tokenizer: Any, folder: Path, codes: Codes) -> None:
        """Writes the graph, then quantizes it."""
        model = copy.deepcopy(model).float().cpu().eval()
        forget_gguf(model)
        _as_linear(model)
        # Its mask is added; that of the fused attention is a cascade of checks on each score, which runs slower.
        model.set_attn_implementation("eager")
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        target = folder / ONNX_NAME
        with _quiet_exporter():
            _write(model, tokenizer, target)
            _strip(target)
            if self.precision == "int8":
                from onnxruntime.quantization import QuantType, quantize_dynamic

                quantize_dynamic(target, target, weight_type=QuantType.QInt8, per_channel=True)
            elif self.precision == "int4":
                _to_4_bits(target)

    def logits(self, folder: Path, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        """Computed by ONNX Runtime."""
        return logits_for_texts(OnnxModel(folder), tokenizer, texts)


class _Outputs(nn.Module):
    """A model with positional tensors in and one tensor out, as a graph has them."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Returns the logits, or hidden states without a head."""
        found = self.model(**dict(zip(self.names, tensors, strict=True)))
        result: Tensor = found.logits if "logits" in found else found.last_hidden_state
        return result


def _as_linear(model: nn.Module) -> None:
    """Replaces each `Conv1D`, in a graph another operation than a matrix product, of which none is coded in 4 bits."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, Conv1D):
            rows, columns = module.weight.shape
            linear = nn.Linear(rows, columns, device="meta")
            linear.weight, linear.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
            model.set_submodule(name, linear)


def _inputs(tokenizer: Any) -> dict[str, Tensor]:
    """Two texts of more than one token: a size of 1 would be taken for a constant."""
    batch = batch_of(tokenizer, ["a short text", "a text that is a little longer"], 64)
    return {name: batch[name] for name in _INPUTS if name in batch}


def _why_not_in_batches(model: Any, tokenizer: Any) -> str | None:
    """The reason why a model computes no batch: a decoder without padding classifies single texts only."""
    if getattr(model.config, "pad_token_id", None) is not None:
        return None
    batch = {name: value.to(model.device) for name, value in _inputs(tokenizer).items()}
    try:
        with torch.no_grad():
            model(**batch)
    except ValueError as error:
        return f"it runs no batch of texts, as a graph does ({error}) Set pad_token_id in its config and train it so."
    return None


def _write(model: Any, tokenizer: Any, path: Path) -> None:
    batch = _inputs(tokenizer)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        torch.onnx.export(
            _Outputs(model, list(batch)).eval(), tuple(batch.values()), path, dynamo=True, external_data=False,
            input_names=list(batch), output_names=[OUTPUT], dynamic_shapes=((axes,) * len(batch),), verbose=False,
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise MethodMisfit(
            f'torch writes no graph of {type(model).__name__}, so it cannot be exported as "onnx" '
            f'({type(cause).__name__}: {" ".join(str(cause).split()):.300}). Export it as "safetensors".'
        ) from error


def _strip(path: Path) -> None:
    """Removes the exporter's notes on each node, which are larger than the node and name files of this machine."""
    import onnx

    graph = onnx.load(path)
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.metadata_props[:], graph.graph.metadata_props[:], graph.graph.value_info[:]
    onnx.save(graph, path)


def _to_4_bits(path: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # With accuracy level 4, activations are rounded to int8 too, which has fast instructions.
    quantizer = MatMulNBitsQuantizer(onnx.load(path), bits=4, block_size=_BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=False)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences the exporters, which report each of their passes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
