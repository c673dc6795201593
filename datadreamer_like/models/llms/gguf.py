"""GGUF files: found on this machine or on the Hugging Face Hub, and their metadata read without loading the model.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from datadreamer_like.errors import DataError, DefinitionError, HubError, UnknownModel, did_you_mean

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The specification's value types, by number, as struct's codes.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


def find_gguf(model_name: str, model_file: str | None = None, revision: str | None = None) -> tuple[Path, str | None]:
    """Returns the path of a model's file, and the Hub repository that it was downloaded from, or None.

    The arguments and errors are those of `LlamaCPP`.
    """
    path = Path(model_name).expanduser()
    if path.is_file():
        return path.absolute(), None
    if path.is_dir():
        files = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*.gguf"))]
        return (path / _chosen(files, model_file, f"The folder {path}")).absolute(), None
    if model_name.endswith(".gguf") or not _REPO_ID.fullmatch(model_name):
        raise UnknownModel(
            f"There is no model file {model_name}. Give the path of a .gguf file, of a folder that holds one, or a "
            'Hub repository as in "owner/name".'
        )
    return _from_hub(model_name, model_file, revision), model_name


def _from_hub(repo_id: str, model_file: str | None, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    what = f"{repo_id} at revision {revision}" if revision else repo_id
    if model_file is None:
        with _hub_errors(f"list of the files of {what}"):
            files = [file for file in HfApi().list_repo_files(repo_id, revision=revision) if file.endswith(".gguf")]
        model_file = _chosen(files, None, f"The Hub repository {repo_id}")
    # A downloaded file is reused, so that a rerun needs no network and gets the same model.
    cached = try_to_load_from_cache(repo_id, model_file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    with _hub_errors(f"file {model_file} of {what}"):
        return Path(hf_hub_download(repo_id, model_file, revision=revision))


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    from huggingface_hub import errors

    absent = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
    try:
        yield
    except Exception as error:  # including errors of the HTTP library, which differs between versions of the Hub client
        if isinstance(error, absent) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise UnknownModel(
                f"The Hub has no {what}. Check the names; a private repository needs a token (`hf auth login`)."
            ) from error
        raise HubError(
            f"Could not get the {what} from the Hub ({type(error).__name__}), and it is not in the local Hub cache. "
            "Connect to the network, or give the path of a file. To use a file downloaded before, pass model_file=."
        ) from error


def _chosen(files: list[str], wanted: str | None, where: str) -> str:
    if wanted is not None:
        if wanted not in files:
            raise UnknownModel(
                f"{where} has no {wanted}; it has: {', '.join(files) or 'no GGUF file'}.{did_you_mean(wanted, files)}"
            )
        return wanted
    if not files:
        raise UnknownModel(f"{where} holds no GGUF file.")
    # llama.cpp loads a model that is split into several files by its first one.
    whole = [file for file in files if not re.search(r"-(?!00001-of)\d{5}-of-\d{5}\.gguf$", file)]
    if len(whole) > 1:
        raise DefinitionError(f"{where} holds several GGUF files. Choose one with model_file=: {', '.join(whole)}.")
    return whole[0]


class _ArrayLength(int):
    """Number of values of an array."""


class GGUFHeader(dict[str, Any]):
    """The single values of a GGUF file's metadata, such as `general.license`, without arrays (the vocabulary)."""

    vocabulary_size: int | None = None
    """Number of tokens; None if the file has no vocabulary."""

    @property
    def context_length(self) -> int | None:
        """The model's trained context length in tokens, if the file states it."""
        length = self.get(f"{self.get('general.architecture')}.context_length")
        return int(length) if length else None

    @property
    def license(self) -> str | None:
        """The licence, as the file states it."""
        return self.get("general.license.name") or self.get("general.license")

    @property
    def model_card(self) -> str | None:
        """Where the model comes from, as the file states it."""
        keys = ("general.source.url", "general.repo_url", "general.url", "general.source.huggingface.repository")
        return next((str(self[key]) for key in keys if self.get(key)), None)


def read_gguf_header(path: Path) -> GGUFHeader:
    """Reads a GGUF file's metadata; raises `UnknownModel` if there is none, `DataError` if it is damaged."""
    try:
        with path.open("rb") as file:
            return _metadata(path, file)
    except OSError as error:
        raise UnknownModel(
            f"There is no model file {path}. Give the path of a .gguf file, or a repository of the Hub."
        ) from error
    except (struct.error, KeyError) as error:
        raise DataError(
            f"{path} is damaged or cut off: its metadata cannot be read. Download or make it again."
        ) from error


def _metadata(path: Path, file: BinaryIO) -> GGUFHeader:
    if file.read(4) != b"GGUF":
        raise DataError(
            f"{path} is not a GGUF file: it does not start with the four letters GGUF. llama.cpp reads no other "
            "format; models in safetensors are for HFTransformers, or can be converted."
        )
    version, _, count = _numbers(file, "IQQ")
    if version not in (2, 3):
        raise DataError(
            f"{path} is a GGUF file of version {version}; versions 2 and 3 are known. Convert it with a current tool."
        )
    values = {_text(file): _value(file, *_numbers(file, "I")) for _ in range(count)}
    header = GGUFHeader((key, value) for key, value in values.items() if not isinstance(value, _ArrayLength))
    header.vocabulary_size = values.get("tokenizer.ggml.tokens")
    return header


def _numbers(file: BinaryIO, codes: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{codes}", file.read(struct.calcsize(f"<{codes}")))


def _text(file: BinaryIO) -> str:
    (length,) = _LENGTH.unpack(file.read(8))
    content = file.read(length)
    if len(content) < length:
        raise struct.error("the text ends after the file")
    return content.decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    """Reads a value; skips an array and returns its length."""
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _numbers(file, _SCALARS[kind])[0]
    inner, count = _numbers(file, "IQ")
    if inner in _SCALARS:
        file.seek(count * struct.calcsize(_SCALARS[inner]), os.SEEK_CUR)
    for _ in range(0 if inner in _SCALARS else count):
        if inner == _STRING:
            file.seek(_LENGTH.unpack(file.read(8))[0], os.SEEK_CUR)
        else:
            _value(file, inner)
    return _ArrayLength(count)
