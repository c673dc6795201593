"""Adapters: added to a model for training, and merged into its weights so that the saved model is the scored one."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from datadreamer_like.errors import DefinitionError, HubError, MethodMisfit
from datadreamer_like.formats import dequantize, put_together
from datadreamer_like.models.trained.hf_source import ADAPTER_FOLDER, HOW_FETCHED
from datadreamer_like.models.trained.model_facts import dtype_name, head_options, uncompressed
from datadreamer_like.storage.folders import system_errors

logger = logging.getLogger("datadreamer_like")

_POOLERS = ("pooler", "pooler.dense")  # which checkpoints of masked language models lack
_TRAINED_HEADS = ("SEQ_CLS", "TOKEN_CLS")  # types of task whose heads peft trains in addition

_NOISE = 0.1
_TOLERANCE = 0.01  # relative to the largest logit; a lost adapter changes logits by more


def qlora_configs(dtype: torch.dtype | None) -> tuple[Any, Any]:
    """Returns a quantization config and a peft config as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

    The weights are NF4 with doubly quantized scales, and computed with in `dtype`, None for float32; there is an
    adapter, LoRA of rank 16, on every linear layer.
    """
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    config: Any = BitsAndBytesConfig
    quantized = config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype or torch.float32,
    )
    return quantized, LoraConfig(r=16, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear")


def keeping_heads(quantization: Any, config: Any, make_model: Callable[[Any], Any]) -> Any:
    """Returns a config of bitsandbytes that leaves a model's heads and poolers as they are; others unchanged.

    `make_model` makes a model of its `config`, of which only the names are used. The head of a language model shares
    weights, those of a classifier are trained whole, and new weights have no codes. A config that names modules to
    leave out stays as it is too.
    """
    if type(quantization).__name__ != "BitsAndBytesConfig" or quantization.llm_int8_skip_modules is not None:
        return quantization
    with torch.device("meta"):
        empty = make_model(uncompressed(config))
    found = copy.deepcopy(quantization)
    kept = {*_heads(empty), *get_keys_to_not_convert(empty), *_POOLERS}
    found.llm_int8_skip_modules = sorted(kept)
    return found


def prepared_codes(model: Any) -> Any:
    """Returns a model that a library has quantized, ready for an adapter: frozen, with its other weights in float32."""
    from peft import prepare_model_for_kbit_training

    # On some processors bitsandbytes repacks its codes in eval mode, and then has no gradients after an evaluation.
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
    prepare: Any = prepare_model_for_kbit_training
    return prepare(model, use_gradient_checkpointing=False)  # which is an option of `train`


def with_adapter(model: Any, config: Any, task_type: str | None) -> Any:
    """Returns the peft model that trains an adapter on a model, of the type of task `task_type`; None for embedders.

    An adapted weight that other modules share gets a copy, so that merging the adapter does not change them.

    Raises:
        MethodMisfit: The model has none of the modules that the config names.
        DefinitionError: The adapter cannot be merged, or `config` is for another type of task.
    """
    from peft import get_peft_model

    config = copy.deepcopy(config)
    fitting = task_type or "FEATURE_EXTRACTION"
    if config.task_type not in (None, fitting):
        # peft would leave a new head as it is, adapt one that is fitted in another way, or fail.
        given = getattr(config.task_type, "value", config.task_type)
        raise DefinitionError(
            f'peft_config is for task_type="{given}", and the one of this trainer is "{fitting}". Leave task_type out.'
        )
    # What peft wraps a model in for a task calls it as a model of transformers, which an embedder is not.
    config.task_type = task_type if isinstance(model, PreTrainedModel) else None
    if config.task_type in _TRAINED_HEADS and getattr(config, "target_modules", None) == "all-linear":
        _train_heads(model, config)
    with _quiet_peft():
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise MethodMisfit(f"peft_config does not fit {type(model).__name__}: {error}") from error
    if not callable(getattr(adapted, "merge_and_unload", None)):
        raise DefinitionError(
            f"{type(config).__name__} cannot be merged into the weights of a model, so what it trains could not be "
            "saved with it. Pass another peft config, such as peft.LoraConfig(r=8)."
        )
    for names in shared_weights(adapted).values():
        for name in names:
            _give_own(adapted, name)
    return adapted


def saved_and_merged(adapted: Any, tokenizer: Any, folder: Path, base: str) -> Any:
    """Saves an adapter with its tokenizer in a folder, and returns the model with it merged; see `merged`.

    The modules are named as in the model of transformers, also where that is inside another one, as in embedders;
    `base` is the folder or id that it is loaded from.
    """
    with system_errors():
        adapted.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    model = merged(adapted, folder)
    put_together(model)
    for name, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            if name:
                with system_errors():
                    _rename(folder, f"{name}.", type(part), base)
            break
    return model


def merged(adapted: Any, saved: Path | None = None) -> Any:
    """Returns the model with its adapter merged; weights that were shared and now differ are saved separately.

    An adapter is not merged into codes, which would round it off, but into what they stand for. That takes the folder
    in which it was `saved`, if bitsandbytes quantized the model.
    """
    dequantize(adapted)
    for module in adapted.modules():
        if isinstance(getattr(module, "base_layer", None), Conv1D):  # its codes were those of an `nn.Linear`
            module.fan_in_fan_out = True
    with _quiet_peft():
        # A model of transformers may be inside another one, as in embedders.
        parts = [each for each in adapted.get_base_model().modules() if hasattr(each, "hf_quantizer")]
        coded = [each for each in parts if "bnb" in type(each.hf_quantizer).__name__.lower()]
        if saved is not None and coded:
            from peft import PeftModel

            base = adapted.unload()
            for each in coded:
                each.dequantize(torch.float32)
            adapted = PeftModel.from_pretrained(base, str(saved))
        model: Any = adapted.merge_and_unload()
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    if not all(_same(model, *pair) for pair in tied.items()):
        for config in _configs(model.config):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False
        # No architecture ties only some of them, so each is saved.
        for key in tied:
            _give_own(model, key)
        model.all_tied_weights_keys = {}
        logger.info("the adapter made shared weights differ: the saved model has each of them")
    elif tied:
        model.tie_weights()
    return model


def saved_adapter(name: str, model: Path) -> Path:
    """Returns the folder of the adapter that was trained with the model in a folder; `DefinitionError` if none was."""
    folder = model.parent / ADAPTER_FOLDER
    if not folder.is_dir():
        raise DefinitionError(
            f'"{name}" trained no adapter, so there is none to pass on alone. Leave adapter_only out, or train with a '
            "peft_config."
        )
    return folder


def check_base(name: str, base: str, start: Any) -> None:
    """Refuses to publish an adapter alone that others would load on another model than it was trained on.

    `base` is the folder or id that it was trained on, and `start` the trained model of which that is; None if it is
    none.

    Raises:
        HubError: The trained model is not on the Hub.
    """
    if start is not None and base != start.card.base_model:
        raise HubError(
            f'"{name}": the adapter was trained on the weights of {start!r}, which others do not have, and gives wrong '
            "answers on other weights. Publish that model first and train from its id, or leave adapter_only out to "
            "publish the merged model."
        )


def base_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those arguments of `from_pretrained` that decide the outputs of the base model, as plain values.

    `options` are all that it was loaded with for the training. An adapter is right only on a base model with the same
    quantization, data type and overrides of its config.
    """
    found = {name: value for name, value in options.items() if name not in HOW_FETCHED}
    if found.get("revision") == "main":
        del found["revision"]
    if not found.get("trust_remote_code"):
        found.pop("trust_remote_code", None)
    if isinstance(dtype := found.get("dtype"), torch.dtype):
        found["dtype"] = dtype_name(dtype)
    if (quantization := found.get("quantization_config")) is not None:
        config = quantization if isinstance(quantization, dict) else quantization.to_dict()
        plain: dict[str, Any] = json.loads(json.dumps(config, default=str))  # without enumerations
        found["quantization_config"] = {name: value for name, value in plain.items() if not name.startswith("_")}
    return found


def described_base(options: Mapping[str, Any]) -> str | None:
    """Returns what a card says of a base model that was loaded with these options; None if it is the plain one."""
    kept = base_options(options).items()
    given = ", ".join(f"{name}={value!r}" for name, value in kept if (name, value) != ("dtype", "float32"))
    return f"loaded with {given}; the adapter gives other answers on other weights" if given else None


def stated_options(name: str, options: Mapping[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """Returns the `base_options` for the code in a card, with the head of the model that has this config.

    Raises:
        HubError: Code cannot state one of them.
    """
    found = base_options(options) | head_options(config)
    for option, value in found.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise HubError(
                f'"{name}": the base model of the adapter was loaded with {option}={value!r:.100}, which the card '
                "cannot state, and on another base model the adapter gives other answers. Pass plain values, or leave "
                "adapter_only out to publish the merged model."
            ) from None
    return found


def _train_heads(model: Any, config: Any) -> None:
    """Has linear heads trained as they are: "all-linear" names them too, and peft fails on a head that is both."""
    heads = [name for name in _heads(model) if isinstance(getattr(model, name), nn.Linear)]
    left_out = config.exclude_modules or []
    if isinstance(left_out, str):
        config.exclude_modules = "|".join((f"(?:{left_out})", *heads))
    else:
        config.exclude_modules = sorted({*left_out, *heads})
    config.modules_to_save = sorted({*(config.modules_to_save or ()), *heads})


def _heads(model: Any) -> list[str]:
    """Returns the names of the parts of a model in addition to its base model."""
    base = model.base_model
    return [] if base is model else [name for name, part in model.named_children() if part is not base]


def check_merge(
    adapted: Any, fresh: Callable[[], Any], batch: dict[str, Tensor], load: Callable[[Path], Any], scratch: Path
) -> None:
    """Refuses an adapter on shared weights that the saved model would lose, by saving and loading one with noise in it.

    `fresh` returns another, untrained `adapted`; `batch` is an input of the model; `load` loads a folder, for which
    `scratch` is used. Nothing is done for adapters on other weights.

    Raises:
        MethodMisfit: The architecture can only be saved with these weights shared.
    """
    touched = adapted_ties(adapted)
    if not touched:
        return
    trial, generator = fresh().eval(), torch.Generator().manual_seed(0)
    for name, parameter in trial.named_parameters():
        if parameter.requires_grad and any(f"{module}." in name for module in touched):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (_NOISE * noise).to(parameter.device, parameter.dtype)
    try:
        scored = _logits(trial, batch)
        merged(trial).save_pretrained(str(scratch))
        loaded = _logits(load(scratch).eval(), batch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if (scored - loaded).abs().max() > _TOLERANCE * scored.abs().max():
        raise MethodMisfit(
            f"peft_config adapts {' and '.join(touched)}, whose weights {type(adapted.get_base_model()).__name__} "
            "shares with other modules and saves once: the merged model would not be the one that was trained. Leave "
            "them out of target_modules and modules_to_save."
        )


def adapted_ties(adapted: Any) -> list[str]:
    """Returns the names of adapted modules whose weights the architecture shares with other modules."""
    tied = getattr(adapted.get_base_model(), "all_tied_weights_keys", None) or {}
    shared = {name.rpartition(".")[0] for pair in tied.items() for name in pair}
    prefix = "base_model.model."
    names = {name.removeprefix(prefix): module for name, module in adapted.named_modules()}
    return sorted(name for name in shared if is_adapted(names.get(name)))


def shared_weights(adapted: Any) -> dict[int, list[str]]:
    """Returns the names of weights in adapted modules that modules outside them share, by the weights' ids."""
    owners: dict[int, set[str]] = {}
    inside: dict[int, list[str]] = {}
    wrappers = [name for name, module in adapted.named_modules() if is_adapted(module)]
    for name, parameter in adapted.named_parameters(remove_duplicate=False):
        wrapper = next((each for each in wrappers if name.startswith(f"{each}.")), None)
        owners.setdefault(id(parameter), set()).add(wrapper or name)
        if wrapper is not None and not parameter.requires_grad:
            inside.setdefault(id(parameter), []).append(name)
    return {key: names for key, names in inside.items() if len(owners[key]) > 1}


def _give_own(model: Any, name: str) -> None:
    """Replaces a parameter of a model by a copy."""
    owner, _, attribute = name.rpartition(".")
    module: Any = model.get_submodule(owner)
    weight = getattr(module, attribute)
    setattr(module, attribute, nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad))


def is_adapted(module: Any) -> bool:
    """Whether a module has an adapter, or is trained whole next to one."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _same(model: Any, one: str, other: str) -> bool:
    try:
        first, second = model.get_parameter(one), model.get_parameter(other)
    except AttributeError:
        return True  # removed from this model
    return first is second or (first.shape == second.shape and torch.equal(first, second))


def _configs(config: PretrainedConfig) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", None) or {}:
        if (inner := getattr(config, name, None)) is not None:
            yield from _configs(inner)


@torch.no_grad()
def _logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(**{name: value.to(device) for name, value in batch.items()}).logits
    return logits.float().cpu()


# Starts of peft's warnings about tied embeddings
_SHARED_WEIGHTS = r"\s*(?:Model (?:with|has) `tie_word_embeddings=True`|Input and output embeddings are no longer tied)"


@contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft reads a transformers property by its deprecated name, and warns of shared weights, which are kept right.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", _SHARED_WEIGHTS, UserWarning)
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys .*gate_up_proj", RuntimeWarning)
        yield


def _rename(folder: Path, prefix: str, inner: type[nn.Module], base: str) -> None:
    """Makes a saved adapter one of the model inside another: `prefix` is left out of the names of its modules.

    An adapter with modules elsewhere too stays as it is. `inner` is the class of the model inside, and `base` the
    folder or id that it is loaded from.
    """
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    outer = f"base_model.model.{prefix}"
    tensors = load_file(weights)
    if not all(name.startswith(outer) for name in tensors):
        return
    renamed = {f"base_model.model.{name.removeprefix(outer)}": tensor for name, tensor in tensors.items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    said = json.loads(config.read_text(encoding="utf-8"))
    for key, value in said.items():
        if isinstance(value, list):
            said[key] = [each.removeprefix(prefix) if isinstance(each, str) else each for each in value]
        elif isinstance(value, dict):
            said[key] = {name.removeprefix(prefix): each for name, each in value.items()}
    said["base_model_name_or_path"] = base
    said["auto_mapping"] = {"base_model_class": inner.__name__, "parent_library": inner.__module__}
    config.write_text(json.dumps(said, indent=2, ensure_ascii=False, sort_keys=True), encoding="utf-8")
