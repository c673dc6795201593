"""Writing exports: a format is chosen and checked, its folder written whole, and the logits of its runtime compared."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataDreamerError,
    DataError,
    DefinitionError,
    EmptyDataset,
    MethodMisfit,
    did_you_mean,
    require_extra,
)
from datadreamer_like.graph.card import CARD_NAME
from datadreamer_like.storage.exports import local_path, new_export

from ..quiet import quiet
from ..trained.confidence import Confidence
from ..trained.embedder_files import copy_modules
from ..trained.hf_source import forget_gguf
from ..trained.model_facts import count_parameters, task_of
from ..trained.model_files import check_saved_files, write_card
from ..trained.predictions import check_texts
from .int4 import Codes
from .report import EXPORT_NAME, ONNX_NAME, Exported

logger = logging.getLogger("datadreamer_like")

SAFETENSORS = "safetensors"
_TEXTS = 32
_AGREEMENT = 0.9
"""Share of the texts below which a warning says how many have another most likely class or next token."""
_SAMPLE = [
    "A parser for command-line options, with subcommands and generated help pages.",
    "Reads and writes tables of numbers.",
    "The weather was fine, so they walked home along the river.",
    "What is the capital of France?",
]
_WEIGHTS = (".safetensors", ".gguf", ".onnx")


def export_formats() -> dict[str, Any]:
    """Returns the classes of the formats other than safetensors, by name."""
    from .compressed_tensors_folder import CompressedTensors
    from .gguf_file import GGUF
    from .gptq_folder import GPTQLayout
    from .onnx_file import ONNX

    return {kind.name: kind for kind in (CompressedTensors, GPTQLayout, GGUF, ONNX)}


def export_model(
    trained: Any, name: str, to: str | Path, texts: Iterable[str] | None, options: Mapping[str, Any]
) -> Path:
    """Writes a `TrainedModel`, whose `export` describes the arguments and errors."""
    if texts is not None:
        check_texts(texts)
    form = _chosen_for(trained, name, options)
    if not isinstance(to, str | Path):
        raise ArgumentTypeError(f"to must be the folder to write to, not {to!r:.100}.")
    if not str(to):
        raise DefinitionError("export needs the folder to write to: export(to=folder).")
    target = local_path(to, "Exporting a model")
    if Path(trained.path).resolve().is_relative_to(target.resolve()):
        raise DefinitionError(
            f"{target} holds the model that is exported, and an export replaces what is there. Choose another folder."
        )
    if form is None:
        with new_export(target, "Exporting a model", (CARD_NAME, EXPORT_NAME)) as draft:
            if Path(trained.path).is_dir():
                check_saved_files(Path(trained.path))
                shutil.copytree(trained.path, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD_NAME))
            else:
                trained.save(trained.model, trained.tokenizer, draft)
            write_card(draft, trained.card)
        return target
    require_extra("export", *form.modules, what=f'export("{form.name}")')
    source = unquantized(trained, form.name)
    fitted = _fitted_on(trained)
    with quiet():
        model, codes = decoded(source)
        tokenizer = source.tokenizer
        if reason := form.why_not(model, tokenizer):
            raise MethodMisfit(f'{trained!r} cannot be exported as "{form.name}": {reason}')
        compared = _compared(trained, texts)
        with new_export(target, "Exporting a model", (CARD_NAME, EXPORT_NAME)) as draft:
            form.write(model, source.new_tokenizer(), draft, codes)
            copy_modules(source.path, draft)
            write_card(draft, trained.card)
            _checked(form, model, tokenizer, draft, compared).write(draft)
            kept = _fitted_on(source).exported(source.dtype, model.dtype) if _is_exact(form, source) else Confidence()
            if kept.names:
                kept.write(draft)  # after the report: it can be fitted again
    if left_out := " and ".join(each for each in fitted.names if each not in kept.names):
        runtime = ', runtime="onnx"' if (target / ONNX_NAME).is_file() else ""
        logger.warning(
            'The "%s" export of %r has no %s: its numbers are not those that it was fitted on, so it would be wrong. '
            "Fit on the export: Calibrate or Abstain(name, TrainedModel.load(%r%s), ...).",
            form.name, trained, left_out, str(target), runtime,
        )  # fmt: skip
    return target


def why_not(trained: Any, name: str, options: Mapping[str, Any]) -> str | None:
    """Returns why a `TrainedModel` cannot be exported in a format; None if it can."""
    try:
        form = _chosen_for(trained, name, options)
        if form is None:
            return None
        source = unquantized(trained, name)
    except MethodMisfit as error:
        return str(error)
    with quiet():
        reason: str | None = form.why_not(decoded(source)[0], source.tokenizer)
    return reason


def unquantized(trained: Any, name: str) -> Any:
    """Returns the model, or the one that it was quantized from, found through the stages that made it.

    A model whose codes were learned stays: its weights are better than those it was quantized from.

    Raises:
        MethodMisfit: It is quantized, and its parent is not known here; or its activations are signs.
    """
    parent = trained
    while is_quantized(parent.config):
        entries = _entries(parent.config)
        if any(entry.get("inputs") == "binary" for entry in entries):
            raise MethodMisfit(
                f'{trained!r} multiplies signs by signs, which no other runtime does. Export it as "{SAFETENSORS}".'
            )
        if any(entry.get("learned") for entry in entries):
            return parent
        found = _made_from(parent.node)
        if found is None:
            models = [card.name for card in parent.card.parents if card.kind != "step"]
            made_from = f' (it was made from "{models[0]}")' if models else ""
            raise MethodMisfit(
                f'{trained!r} is quantized, and "{name}" is written from the weights before quantization, which are '
                f"not known here{made_from}. Export the model that was quantized, or the stage in its session."
            )
        parent = found
    return parent


def decoded(source: Any) -> tuple[Any, Codes]:
    """Returns a model without codes, and the layers with 4-bit codes, by name, that weights of it were decoded from."""
    from datadreamer_like.formats import dequantize, layouts
    from datadreamer_like.formats.uniform import UniformLinear

    if not is_quantized(source.config):
        return source.model, {}
    model = copy.deepcopy(source.model)
    codes = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, UniformLinear) and isinstance(module.granularity, int)
    }
    dequantize(model)
    if not layouts(model):
        forget_gguf(model)  # or any other quantizer
    return model, codes


def is_quantized(config: Any) -> bool:
    """Whether a config belongs to a model of which some weights are codes."""
    from datadreamer_like.formats.layout import kind_of

    saved = _saved(config)
    if saved and saved.get("quant_method") != "datadreamer_like":
        return True
    return not all(kind_of(entry).trainable for entry in _entries(config))


def _made_from(node: Any) -> Any:
    """Returns the `TrainedModel` that a stage made its model from; None for a trainer, whose source is a path."""
    source = getattr(node, "source", None)
    return source if hasattr(source, "node") else None


def _entries(config: Any) -> list[Any]:
    return list(_saved(config).get("layouts", []))


def _saved(config: Any) -> Mapping[str, Any]:
    saved = getattr(config, "quantization_config", None) or {}
    return saved if isinstance(saved, Mapping) else saved.to_dict()


def _chosen_for(trained: Any, name: str, options: Mapping[str, Any]) -> Any:
    """Returns the format with its options; None for a copy of the model's files.

    Raises:
        MethodMisfit: The model is a graph, and would have to be written in another form.
    """
    form = None if name == SAFETENSORS and not options else _chosen(name, options)
    if trained.runtime == "torch":
        return form
    if form is not None and (form.name != trained.runtime or options):
        raise MethodMisfit(
            f'{trained!r} is a graph of ONNX Runtime, which is exported as it is: export("onnx", to=...) without '
            "options. For another form, export the model that it was made from."
        )
    return None


def _fitted_on(trained: Any) -> Confidence:
    """Returns what was fitted on a classifier; other models have nothing."""
    return cast("Confidence", trained.confidence) if trained.task == "text-classification" else Confidence()


def _is_exact(form: Any, source: Any) -> bool:
    return form.exact and not is_quantized(source.config)


def _chosen(name: str, options: Mapping[str, Any]) -> Any:
    kinds = export_formats()
    if name not in kinds and name != SAFETENSORS:
        known = [SAFETENSORS, *kinds]
        raise DefinitionError(
            f'There is no export format "{name}". There are: {", ".join(known)}.{did_you_mean(str(name), known)}'
        )
    known = [] if name == SAFETENSORS else [field.name for field in dataclasses.fields(kinds[name])]
    for option in options:
        if option not in known:
            offered = f"It has: {', '.join(known)}." if known else "It has none."
            raise DefinitionError(
                f'The export format "{name}" has no option "{option}". {offered}{did_you_mean(option, known)}'
            )
    return kinds[name](**options)


def _compared(trained: Any, texts: Iterable[str] | None) -> list[str]:
    """Returns up to 32 texts, evenly spread: those given, else of the calibration column, else a few sentences."""
    node = trained.node
    while texts is None and (source := _made_from(node)) is not None:
        columns = node.columns() if hasattr(node, "columns") else {}
        texts, node = columns.get("calibration"), source.node
    found = _SAMPLE if texts is None else [text for text in texts if text]
    if wrong := [text for text in found if not isinstance(text, str)]:
        raise DataError(f"texts has {wrong[0]!r:.100}, which is not a text.")
    if not found:
        raise EmptyDataset(
            "texts is empty, or has empty ones only, so the export cannot be compared with the model. Pass a few, or "
            "None."
        )
    count = min(_TEXTS, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _checked(form: Any, model: Any, tokenizer: Any, draft: Path, texts: list[str]) -> Exported:
    """Runs the written files in their runtime; raises `MethodMisfit` if they compute something else."""
    from .logits import distance, logits_for_texts

    # Some runtimes compute in fp32 what was trained in 16 bits: the rounding of bf16 is not an error of theirs.
    exact = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    wanted = logits_for_texts(exact, tokenizer, texts)
    try:
        found = form.logits(draft, tokenizer, texts)
    except (DataDreamerError, MemoryError):
        raise
    except Exception as error:  # runtimes raise errors of many classes
        raise MethodMisfit(
            f'The "{form.name}" export of {type(model).__name__} does not run in {form.runtime}: '
            f"{' '.join(str(error).split()):.300} ({type(error).__name__}). Nothing was written. Choose another format."
        ) from error
    apart = distance(wanted, found, shifted=form.name == "gguf")
    if not apart <= form.tolerance:
        raise MethodMisfit(
            f'The "{form.name}" export of {type(model).__name__} computes other logits in {form.runtime} than the '
            f"model does: they are {apart:.3g} apart (relative L2), and rounding explains {form.tolerance:g}. Nothing "
            "was written. Check the weights for infinities and outliers, or choose more bits."
        )
    agreement = float((wanted.argmax(-1) == found.argmax(-1)).double().mean())
    if agreement < _AGREEMENT and task_of(model.config) != "feature-extraction":
        logger.warning(
            'The "%s" export of %s gives another most likely class or next token than the model for %.0f %% of the %d '
            "texts compared (agreement in %s). Measure it with Compare, or choose more bits.",
            form.name, type(model).__name__, 100 * (1 - agreement), len(texts), EXPORT_NAME,
        )  # fmt: skip
    sizes = [file.stat().st_size for file in draft.rglob("*") if file.suffix in _WEIGHTS]
    options = dataclasses.asdict(form)
    runtime = f"{form.runtime} {_version(form.runtime)}".strip()
    return Exported(form.name, options, runtime, len(texts), apart, agreement, count_parameters(model), sum(sizes))


def _version(runtime: str) -> str:
    package = {"transformers": "transformers", "llama.cpp": "xllamacpp", "ONNX Runtime": "onnxruntime"}.get(runtime)
    return "" if package is None else importlib.metadata.version(package)
