"""The code in a published card that loads what was published."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from .folder import is_graph, library_of
from .repository import MAIN, Repository

_TOKENIZER = "tokenizer_config.json"
_CONFIDENCE = "confidence.json"
"""A temperature and a threshold, which only this package applies."""
_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "fill-mask": "AutoModelForMaskedLM",
}


def load_model(
    repository: Repository,
    files: Collection[str],
    task: str,
    imports: Sequence[str],
    base_model: str | None,
    options: Mapping[str, object],
) -> str:
    """Returns Python code that loads a model with these files; `options` are those of its base, if it is an adapter."""
    name, given = repository.repo_id, arguments(repository, repository.repo_id)
    library = library_of(files)
    if library == "peft" and base_model is not None:
        code = load_adapter(given, repr_of(base_model), task, options)
    elif library == "sentence-transformers":
        code = f"from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer({given})"
    elif library is None or library == "peft":
        code = f"from huggingface_hub import snapshot_download\n\nfolder = snapshot_download({given})"
    elif library == "onnx" or _CONFIDENCE in files or _TOKENIZER not in files:
        name, call, runtime = "TrainedModel", "TrainedModel.load", ', runtime="onnx"' if is_graph(files) else ""
        if library == "onnx" and "modules.json" in files:
            name = call = "SentenceTransformersEmbedder"
            runtime = ""
        return (
            f"from datadreamer_like.models import {name}\nfrom huggingface_hub import snapshot_download\n\n"
            f"model = {call}(snapshot_download({given}){runtime})"
        )
    else:
        code = f"from transformers import pipeline\n\nmodel = pipeline({arguments(repository, task, model=name)})"
    return "".join(f"import {module}\n" for module in imports) + code


def arguments(repository: Repository, *values: str, **named: object) -> str:
    """Returns Python arguments, with the branch unless it is the main one."""
    named |= {} if repository.branch == MAIN else {"revision": repository.branch}
    return ", ".join([*map(repr_of, values), *(f"{name}={repr_of(value)}" for name, value in named.items())])


def repr_of(value: object) -> str:
    """Returns a value as Python code, with double quotes around a text."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def load_adapter(given: str, base: str, task: str, options: Mapping[str, object]) -> str:
    """Returns Python code that loads an adapter on its base model, of which `options` are arguments.

    `given` and `base` are the names of both, as code.
    """
    if task == "sentence-similarity":
        fetched = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
        inner = {name: value for name, value in options.items() if name not in fetched}
        further = _named(fetched | ({"model_kwargs": inner} if inner else {}))
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f"model = SentenceTransformer({base}{further})\nmodel.load_adapter({given})"
        )
    loader, further = _CLASSES.get(task, "AutoModel"), _named(options)
    return (
        f"from peft import PeftModel\nfrom transformers import {loader}, AutoTokenizer\n\n"
        f"base = {loader}.from_pretrained({base}{further})\n"
        f"model = PeftModel.from_pretrained(base, {given}).eval()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({given})"
    )


def _named(options: Mapping[str, object]) -> str:
    """Returns further arguments of a call, by name, as Python code."""
    return "".join(f", {name}={repr_of(value)}" for name, value in options.items())
