"""Reads a GGUF file's metadata without loading the model.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datadreamer_like.errors import DataError, UnknownModel

# The specification's value types, by number, as struct's codes.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_READABLE_VERSIONS = (2, 3)


@dataclass(frozen=True)
class GGUFHeader:
    """The single values among a GGUF file's metadata; arrays, such as the vocabulary, are left out.

    Attributes:
        values: Key to value, for instance `general.architecture`, `general.license`, `tokenizer.chat_template`.
    """

    values: dict[str, Any]

    @property
    def architecture(self) -> str:
        """Name of the architecture, as in `llama`."""
        return str(self.values.get("general.architecture", ""))

    @property
    def context_length(self) -> int | None:
        """The model's trained context length in tokens, if the file states it."""
        length = self.values.get(f"{self.architecture}.context_length")
        return int(length) if length else None

    @property
    def license(self) -> str | None:
        """The licence, as the file states it."""
        return self.values.get("general.license.name") or self.values.get("general.license")

    @property
    def url(self) -> str | None:
        """Where the model comes from, as the file states it."""
        for key in ("general.source.url", "general.repo_url", "general.url", "general.source.huggingface.repository"):
            if value := self.values.get(key):
                return str(value)
        return None


def read_gguf_header(path: Path) -> GGUFHeader:
    """Reads a GGUF file's metadata.

    Raises:
        UnknownModel: There is no such file.
        DataError: The file is not a GGUF file, is truncated, or has an unknown version.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UnknownModel(
            f"There is no model file {path}. Give the path of a .gguf file, or a repository of the Hub."
        ) from error
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _read(path: Path, size: int, mtime_ns: int) -> GGUFHeader:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise DataError(
                f"{path} is not a GGUF file: it does not start with the four letters GGUF. llama.cpp reads no other "
                "format; models in safetensors are for HFTransformers, or can be converted."
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return GGUFHeader(_metadata(path, content))
            except (struct.error, UnicodeDecodeError, KeyError) as error:
                raise DataError(
                    f"{path} is damaged or cut off: its metadata cannot be read. Download or make it again."
                ) from error


def _metadata(path: Path, content: mmap.mmap) -> dict[str, Any]:
    version, _, count = struct.unpack_from("<IQQ", content, 4)
    if version not in _READABLE_VERSIONS:
        raise DataError(
            f"{path} is a GGUF file of version {version}; versions 2 and 3 are known. Convert it with a current tool."
        )
    position = 24
    values: dict[str, Any] = {}
    for _ in range(count):
        key, position = _text(content, position)
        (kind,) = struct.unpack_from("<I", content, position)
        value, position = _value(content, kind, position + 4)
        if kind != _ARRAY:
            values[key] = value
    return values


def _value(content: mmap.mmap, kind: int, position: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _text(content, position)
    if kind == _ARRAY:
        return None, _end_of_array(content, position)
    code = "<" + _SCALARS[kind]
    return struct.unpack_from(code, content, position)[0], position + struct.calcsize(code)


def _end_of_array(content: mmap.mmap, position: int) -> int:
    kind, count = struct.unpack_from("<IQ", content, position)
    position += 12
    if kind in _SCALARS:
        return position + int(count) * struct.calcsize("<" + _SCALARS[kind])
    if kind == _STRING:
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            position += 8 + length_at(content, position)[0]
        return position
    for _ in range(count):
        _, position = _value(content, kind, position)
    return position


def _text(content: mmap.mmap, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", content, position)
    start, end = position + 8, position + 8 + length
    if end > len(content):
        raise struct.error("the text ends after the file")
    return content[start:end].decode("utf-8", "replace"), end
