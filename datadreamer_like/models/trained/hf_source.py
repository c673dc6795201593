"""Where a Hugging Face model comes from: a folder, a trained model, a GGUF file, or the Hub."""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datadreamer_like.errors import (
    ArgumentTypeError,
    DataDreamerError,
    DataError,
    DefinitionError,
    HubError,
    MethodMisfit,
    MissingExtra,
    StorageError,
    UnknownModel,
)
from datadreamer_like.storage.digests import file_digest

from ..exports.report import graph_misfit, runtime_of
from ..llms.gguf import read_gguf_header
from ..quiet import quiet
from .config_faults import adapter_alone, config_fault, wrong_kind
from .model_files import check_saved_files, damage_of, files_identity, model_folder

HOW_FETCHED = frozenset({"token", "cache_dir", "local_files_only"})
"""Arguments of `from_pretrained` that do not decide which model is loaded; `token` is a secret."""

ADAPTER_FOLDER = "adapter"
"""Where a trainer's result has its adapter, next to the model."""

_README_SECONDS = 5
_MODEL_FILES = ("config.json", "modules.json")
_UNKNOWN_ARGUMENT = re.compile(r"got an unexpected keyword argument '(\w+)'")
_BIBTEX = re.compile(r"^\s*(@\w+\s*\{.*?^\s*\})", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class HFSource:
    """A model that transformers can load."""

    name: str
    """What `from_pretrained` takes: a folder or a Hub id."""
    gguf_file: str | None = None
    """The file in that folder, where it is a GGUF file."""
    revision: str | None = None
    origin: Any = None
    """The trainer, stage or trained model that was given, if one was."""

    @property
    def folder(self) -> Path | None:
        """The folder on this machine; None for a Hub id."""
        path = Path(self.name)
        return path if path.is_dir() else None

    @property
    def is_graph(self) -> bool:
        """Whether it is a graph of ONNX Runtime, which transformers does not load."""
        return self.folder is not None and runtime_of(self.folder) == "onnx"

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of `from_pretrained` that say which files to take."""
        options = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {name: value for name, value in options.items() if value is not None}

    def fetching(self, trust_remote_code: bool, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `from_pretrained` for any of its files, those in `kwargs` of fetching included."""
        fetched = {name: value for name, value in kwargs.items() if name in HOW_FETCHED}
        return {"trust_remote_code": trust_remote_code, **fetched, **self.options}

    @property
    def identity(self) -> Any:
        """Identity for fingerprints: a local model's content, else its name and revision."""
        if hasattr(type(self.origin), "__fingerprint__"):
            return self.origin
        if self.folder is None:
            return self.name, self.revision
        if self.gguf_file is not None:
            return file_digest(self.folder / self.gguf_file)
        return files_identity(self.folder)

    @property
    def model_card(self) -> str | None:
        """Address of the model's card on the Hub."""
        return f"https://huggingface.co/{self.name}" if self.folder is None else None

    @property
    def license(self) -> str | None:
        """The licence, where the model's README or GGUF file states it."""
        if self.folder is not None and self.gguf_file is not None:
            return read_gguf_header(self.folder / self.gguf_file).license
        stated = re.search(r"^license:\s*(\S+)\s*$", self._readme().partition("\n---")[0], re.MULTILINE)
        return stated[1].strip("\"'") if stated else None

    @property
    def citation(self) -> list[str] | None:
        """BibTeX entries in the model's README."""
        return [entry.strip() for entry in _BIBTEX.findall(self._readme())] or None

    def _readme(self) -> str:
        if self.folder is None:
            return _hub_readme(self.name, self.revision)
        readme = self.folder / "README.md"
        return readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""


def hf_source(model: Any, revision: str | None = None) -> HFSource:
    """Returns the source of a model, which is named by a folder, a `.gguf` file, a Hub id or an object with a `path`.

    The folder may be that of a trainer's or stage's result.
    """
    origin = None
    if not isinstance(model, str | os.PathLike):
        origin, model = model, getattr(model, "path", None)
        if not isinstance(model, str | os.PathLike):
            raise ArgumentTypeError(
                f"A model is named by a folder, a .gguf file, a Hub id, or an object with a path, not {origin!r}."
            )
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        read_gguf_header(path)
        return HFSource(str(path.absolute().parent), path.name, origin=origin)
    if path.is_dir():
        path = model_folder(path)
        if reason := adapter_alone(path):
            raise UnknownModel(reason)
        if not any((path / name).is_file() for name in _MODEL_FILES):
            raise UnknownModel(
                f"{path} is not the folder of a saved model: it has no config.json. Give a folder that "
                "`save_pretrained` wrote, or a trainer's or stage's `path`."
            )
        return HFSource(str(path.absolute()), origin=origin)
    if path.is_file() or path.is_absolute() or len(path.parts) > 2 or str(model).startswith((".", "~")):
        raise UnknownModel(
            f"There is no model folder {model}. Give a folder that `save_pretrained` wrote, a .gguf file, or a Hub id "
            'as in "owner/name".'
        )
    return HFSource(str(model), revision=revision, origin=origin)


def adapter_source(adapter: Any) -> HFSource:
    """Returns the source of an adapter: its folder or Hub id, or a trainer with one, or the `path` of such a trainer.

    Raises:
        UnknownModel: The folder holds a model, or nothing.
        DataError: Its adapter_config.json is damaged.
        ArgumentTypeError: It is none of these.
    """
    named = adapter if isinstance(adapter, str | os.PathLike) else getattr(adapter, "path", None)
    if named is not None and (folder := Path(named).expanduser()).is_dir():
        # A trainer saves its adapter next to the model that it is merged into.
        for place in (folder, folder.parent / ADAPTER_FOLDER, folder / ADAPTER_FOLDER):
            if (config := place / "adapter_config.json").is_file():
                try:
                    known = "peft_type" in json.loads(config.read_text(encoding="utf-8"))
                except (ValueError, TypeError):
                    known = False
                if not known:
                    raise DataError(
                        f"{config} is not the config of an adapter of peft. Restore it, or save the adapter again."
                    )
                return HFSource(str(place.absolute()))
        raise UnknownModel(
            f"{folder} holds no adapter (it has no adapter_config.json). Give the folder of one, or a trainer with a "
            "peft_config; a whole model is given as model_name."
        )
    return hf_source(adapter)


def with_adapter(model: Any, adapter: HFSource, options: dict[str, Any]) -> Any:
    """Returns a loaded model with a PEFT adapter on it; `options` are those of `PeftModel.from_pretrained`."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft 0.21 reads a transformers property by its deprecated name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return PeftModel.from_pretrained(model, adapter.name, **options)


@contextmanager
def loading(source: HFSource, *, weights: bool = False) -> Iterator[None]:
    """Silences transformers inside the block, and turns its errors into the package's.

    A folder's files are compared with its card: first with `weights`, else if they cannot be loaded.

    Raises:
        StorageError: A file is damaged, was changed after it was saved, or lacks weights.
        UnknownModel: There is no model, or a file of it is missing.
        MethodMisfit: The folder holds a graph of ONNX Runtime, or a model of a kind that cannot be loaded as this one.
        HubError: The model is not here, and the Hub is unavailable.
        DataError: `config.json` has a wrong value, or the files do not fit each other.
        MissingExtra: A package that loads weights of this form is not installed.
        DefinitionError: `from_pretrained` has no argument of a name that it was given.
    """
    if weights and source.folder is not None:
        check_saved_files(source.folder)
    try:
        with quiet():
            yield
    except (DataDreamerError, MemoryError):
        raise
    except Exception as error:
        if (damage := _damage(source.folder)) is not None:
            raise StorageError(
                f"{damage}. Make the model again, or restore the file: a finished run of a script makes again what it "
                "finds damaged."
            ) from error
        if isinstance(error, ImportError):
            raise MissingExtra(f"transformers cannot load {source.name} here: {error}") from error
        if isinstance(error, OSError):
            if "connect" in str(error).lower() or "offline" in str(error).lower():
                raise HubError(
                    f"{source.name} is not in the Hub's cache here, and the Hub cannot be reached. Connect to the "
                    "network, or give the folder of a model."
                ) from error
            if source.is_graph:
                raise graph_misfit("Loading a model", source.name) from error
            raise UnknownModel(f"transformers finds no complete model in {source.name}: {error}") from error
        if (fault := _fault(source, error)) is not None:
            raise fault from error
        if isinstance(error, TypeError) and (unknown := _UNKNOWN_ARGUMENT.search(str(error))):
            raise DefinitionError(
                f'transformers\' from_pretrained has no option "{unknown[1]}" for {source.name}. Leave it out.'
            ) from error
        if isinstance(error, ValueError | KeyError) or "mismatch" in str(error):
            raise DataError(f"transformers cannot load {source.name}: {error}") from error
        raise


def local_folder(path: str, name: str) -> Path | None:
    """Returns the folder of a model that has a file called `name`: its own, or that of its snapshot from the Hub.

    None if there is no such file, or if the Hub is needed to know and is unavailable.
    """
    if Path(path).is_dir():
        return Path(path) if (Path(path) / name).is_file() else None
    return _hub_folder(path, name)


def forget_gguf(model: Any) -> None:
    """Makes a model that transformers unpacked from a GGUF file trainable, like any other model."""
    model.is_quantized, model.hf_quantizer = False, None
    for holder, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)


def _damage(folder: Path | None) -> str | None:
    """Returns which file cannot be read; raises `StorageError` for one that was changed after it was saved."""
    if folder is None:
        return None
    check_saved_files(folder)
    return damage_of(folder)


def _fault(source: HFSource, error: Exception) -> DataDreamerError | None:
    """Returns what is wrong with a model's config, or that its kind or an adapter alone is; None if none of it is."""
    if reason := wrong_kind(source.folder, source.name, str(error)):
        return MethodMisfit(reason)
    if source.folder is None:
        fetched = _hub_folder(source.name, "adapter_config.json") if "model_type" in str(error) else None
        reason = None if fetched is None else adapter_alone(fetched, source.name)
        return None if reason is None else UnknownModel(reason)
    fault = config_fault(source.folder) if source.gguf_file is None else None
    return None if fault is None else DataError(fault)


@functools.lru_cache(maxsize=64)
def _hub_folder(repo_id: str, name: str) -> Path | None:
    """Returns the folder of a repository's snapshot if it has a file called `name`."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        with quiet():
            hf_hub_download(repo_id, name, etag_timeout=_README_SECONDS)
            return Path(snapshot_download(repo_id))
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def _hub_readme(repo_id: str, revision: str | None) -> str:
    """Returns a repository's README from the Hub's cache or the Hub; "" if it is not available."""
    from huggingface_hub import hf_hub_download

    try:
        with quiet():
            readme = hf_hub_download(repo_id, "README.md", revision=revision, etag_timeout=_README_SECONDS)
        return Path(readme).read_text(encoding="utf-8", errors="replace")
    except Exception:  # a card without a licence is better than a run that stops for it
        return ""
