"""What is wrong with a model's `config.json`: its key and value, where transformers only says that it cannot load.

Or that there is none, as the folder holds an adapter.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datadreamer_like.errors import did_you_mean, with_article

_NAME = "config.json"
_ADAPTER_NAME = "adapter_config.json"
_UNKNOWN_KIND = re.compile(
    r"Unrecognized configuration class <class '(?:\w+\.)*(\w+)'> for this kind of AutoModel: (\w+)"
)
_OF_TRAINERS = {
    "datadreamer_linear": "TrainLinearClassifier",
    "datadreamer_static": "TrainStaticClassifier",
    "datadreamer_embedding": "TrainEmbeddingClassifier or TrainSetFitClassifier",
}
_WRITES = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
"""What peft calls the tasks of language models."""


def adapter_alone(folder: Path, name: str | None = None) -> str | None:
    """Returns that a folder holds an adapter without its model, and what to do with it; None if it holds another thing.

    `name` is the Hub id whose files they are, if they are those of one.

    What the adapter's config lacks, such as the data type of that model and the names of classes, decides answers, so
    the adapter is not loaded on a guess.
    """
    path = folder / _ADAPTER_NAME
    if not path.is_file() or any((folder / each).is_file() for each in (_NAME, "modules.json")):
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        base, task = said.get("base_model_name_or_path") or "its base model", said.get("task_type")
    except (ValueError, AttributeError):
        return f"{path} is not the config of an adapter of peft. Restore it, or save the adapter again."
    named, merged = name or str(folder), folder.parent / "model"
    if name is None and (merged / _NAME).is_file():
        advice = f"The model that it is merged into is in {merged}."
    else:
        run = f"Run it with HFTransformers({base!r}, adapter_name={named!r}), or make" if task in _WRITES else "Make"
        advice = (
            f"{run} a whole model of it: load {base} as it was loaded for the training, then "
            f"peft.PeftModel.from_pretrained(model, {named!r}).merge_and_unload().save_pretrained(another folder), "
            "with the tokenizer. A trainer of this package exports the whole model with export(to=folder)."
        )
    return f"{named} holds only an adapter, which was trained on {base}, and works only with it. {advice}"


def wrong_kind(folder: Path | None, name: str, error: str) -> str | None:
    """Returns that the model `name` is of a kind that cannot be loaded as was tried; None if that is not the reason.

    `folder` has its files, None for one on the Hub; `error` is the message of transformers.
    """
    try:
        config = {} if folder is None else json.loads((folder / _NAME).read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    found = _UNKNOWN_KIND.search(error)
    if found is None and kind != "datadreamer_linear":
        return None
    if kind in _OF_TRAINERS:
        return (
            f"{name} is what a {_OF_TRAINERS[kind]} trained, which can be loaded only as a classifier. Choose a "
            "transformer to start from."
        )
    what = "model" if found is None else f"{found[2]} for {found[1]}"
    return f"{name} cannot be loaded for this: transformers has no {what}. Choose a model for this task."


def config_fault(folder: Path) -> str | None:
    """Returns which value of a folder's `config.json` no model fits, or not the weights in the folder; None if none.

    The file is valid JSON: see `damage_of` for one that is not.
    """
    path = folder / _NAME
    if not path.is_file():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(saved, dict):
        return f"{path} holds {with_article(type(saved))}; it must be an object with the values of a model's config."
    if "auto_map" in saved:  # an architecture whose code is in the folder
        return None
    reason = _wrong_type(saved) or _wrong_value(saved) or _wrong_sizes(folder, saved)
    return None if reason is None else f"{path}: {reason}"


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values of a config as transformers reads them, defaults too; None where it cannot, or its code is foreign."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "auto_map" in saved or saved.get("model_type") not in CONFIG_MAPPING:
        return None
    try:
        values: dict[str, Any] = CONFIG_MAPPING[saved["model_type"]].from_dict(copy.deepcopy(dict(saved))).to_dict()
    except Exception:  # see `_wrong_value`
        return None
    # Transformers 4 writes it out, and later ones know no other kind for most architectures.
    return {"position_embedding_type": "absolute"} | values


def _wrong_type(saved: Mapping[str, Any]) -> str | None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "model_type" not in saved:
        return '"model_type" is missing: the name of the architecture, such as "bert".'
    kind = saved["model_type"]
    if kind in CONFIG_MAPPING:
        return None
    hint = did_you_mean(str(kind), list(CONFIG_MAPPING.keys()))
    return (
        f'"model_type" is {kind!r}, an architecture that transformers {transformers.__version__} does not have.{hint}'
    )


def _wrong_value(saved: Mapping[str, Any]) -> str | None:
    """The value with which no model can be made, of any weights."""
    try:
        _made(saved)
    except ImportError:
        return None
    except Exception as cause:  # configs and constructors raise errors of many classes
        text = " ".join(str(cause).split())
        keys = [key for key in saved if key != "model_type" and _can_be_made(saved, without=key)]
        keys = keys or [key for key in saved if key in text]
        if isinstance(cause, ZeroDivisionError):
            keys = [key for key, value in saved.items() if str(value) == "0" and not key.endswith("_id")]
        what = " and ".join(f'"{key}" is {saved[key]!r:.60}' for key in keys) or "one of its values is wrong"
        return f"{what}, with which transformers makes no model ({type(cause).__name__}: {text:.200})."
    return None


def _wrong_sizes(folder: Path, saved: Mapping[str, Any]) -> str | None:
    """The size that is not that of the weights in the folder."""
    model = _made(saved)
    # Their weights have shapes of their own; other modules show a wrong size as well.
    layouts = (saved.get("quantization_config") or {}).get("layouts", ())
    changed = tuple(f"{name}." for entry in layouts for name in entry["modules"])
    stored = dict(_shapes(folder))
    for name, tensor in model.state_dict().items():
        found, wanted = stored.get(name), list(tensor.shape)
        if found is None or found == wanted or name.startswith(changed):
            continue
        pairs = [(old, new) for old, new in zip(found, wanted, strict=False) if old != new]
        values = model.config.to_dict() | {"num_labels": model.config.num_labels}
        sizes = [
            f'"{key}" is {value}' + ("" if key in saved else ", by default as it is missing")
            for key, value in values.items()
            for old, new in pairs
            if type(value) is int and value == new and _shape_in({**saved, key: old}, name) == found
        ]
        return (
            f"{' and '.join(sizes) or 'a size is wrong'}: {name} is then {wanted}, and the weights in the folder have "
            f"{found}. Correct the value, or restore the file."
        )
    return None


def _can_be_made(saved: Mapping[str, Any], without: str) -> bool:
    return _shape_in({key: value for key, value in saved.items() if key != without}, "") is not None


def _shape_in(saved: Mapping[str, Any], name: str) -> list[int] | None:
    """The shape of a parameter in a model of this config, empty if it has none of this name; None without a model."""
    try:
        return list(getattr(_made(saved).state_dict().get(name), "shape", ()))
    except Exception:  # see `_wrong_value`
        return None


def _made(saved: Mapping[str, Any]) -> Any:
    """A model without weights of this config, in its saved class."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[saved["model_type"]].from_dict(dict(saved))
    architecture = (config.architectures or ["AutoModel"])[0]
    found = getattr(transformers, architecture, transformers.AutoModelForSequenceClassification)
    with torch.device("meta"):
        return found.from_config(config) if hasattr(found, "from_config") else found(config)


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The names and shapes of the tensors in a folder."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                yield name, tensors.get_slice(name).get_shape()
