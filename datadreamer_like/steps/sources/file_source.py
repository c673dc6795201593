"""The base of file sources: finding files, and what they add to fingerprint and card."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MissingFile, did_you_mean
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.fingerprint import ByContent

from ..base.options import NodeOptions, check_known, taken_options, takes_node_options
from .data_source import Source
from .encodings import plain_suffix

logger = logging.getLogger("datadreamer_like")

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class FileSource(Source):
    """Base of sources that read files. The fingerprint depends on the files' content, not on their paths.

    Attributes:
        suffixes: Suffixes of the files that are read from a folder, also in compressed form.
        known_options: Options of the reader, with their defaults.
    """

    suffixes: ClassVar[tuple[str, ...]]
    known_options: ClassVar[dict[str, Any]]

    @takes_node_options
    def __init__(
        self,
        name: str,
        data_folder: str | os.PathLike[str] | None = None,
        data_files: Files | None = None,
        **config_kwargs: Any,
    ) -> None:
        data_folder = data_folder and os.path.expanduser(data_folder)
        step_options = taken_options(config_kwargs, NodeOptions.__annotations__)
        check_known(config_kwargs, self.known_options, f'"{name}": {type(self).__name__}')
        self.config = {**self.known_options, **config_kwargs}
        self.files = _find(name, data_folder, data_files, self.suffixes)
        super().__init__(name, **step_options)

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the content of the files, in order, and the options."""
        options = {f"option {name}": value for name, value in self.config.items()}
        return {"content of the files": [ByContent(file) for file in self.files], **options}

    def register_files(self) -> None:
        """Adds the names of the files to the card."""
        for file in self.files:
            self.register_data_card(DataCardType.DATASET_NAME, file.name)

    def describe_empty(self) -> str:
        """Returns which files are empty."""
        return f"{self.files[0]} is empty." if len(self.files) == 1 else "its files are empty."


def _find(
    name: str, folder: str | os.PathLike[str] | None, files: Files | None, suffixes: tuple[str, ...]
) -> list[Path]:
    """Returns the files to read, each once: as listed, those of patterns and folders in alphabetical order."""
    if isinstance(files, Mapping):
        raise ArgumentTypeError(f'"{name}": data_files is a dictionary of splits. Make a source for each of them.')
    if folder is not None and not os.path.isdir(folder):
        advice = f" It is a file: pass it as data_files={os.fspath(folder)!r}." if os.path.isfile(folder) else ""
        raise MissingFile(f'"{name}": {folder} is not a folder.{advice}')
    if files is not None:
        listed = [files] if isinstance(files, str | os.PathLike) else list(files)
        if not listed:
            raise DefinitionError(f'"{name}": data_files is an empty list.')
        found = [path for entry in listed for path in _matches(name, folder or "", os.fspath(entry), suffixes)]
        return list(dict.fromkeys(found))
    if folder is None:
        raise DefinitionError(f'"{name}": give data_files="rows{suffixes[0]}" or data_folder="folder".')
    named = [path for path in Path(folder).rglob("*") if _has_suffix(path, suffixes)]
    found = sorted(path for path in named if path.is_file())
    if broken := [path for path in named if not path.exists()]:
        logger.warning('"%s": left out %s, whose link leads nowhere (%d such)', name, broken[0], len(broken))
    if not found:
        raise DataError(f'"{name}": the folder {folder} contains no file that ends in {" or ".join(suffixes)}.')
    return found


def _matches(name: str, folder: str | os.PathLike[str], entry: str, suffixes: tuple[str, ...]) -> list[Path]:
    if "://" in entry:
        raise DataError(f'"{name}": {entry} is a URL. Download the file first and give its path.')
    path = Path(folder, os.path.expanduser(entry))
    if path.is_dir():
        return _find(name, path, None, suffixes)
    if path.exists():
        if not os.access(path, os.R_OK):
            raise DataError(f'"{name}": no permission to read {path}.')
        return [path]
    if glob.has_magic(entry):
        matching = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match))
        if not matching:
            raise DataError(f'"{name}": no file matches {path}.')
        return matching
    siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    raise MissingFile(f'"{name}": there is no file {path}.{did_you_mean(path.name, siblings)}')


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return plain_suffix(path) in suffixes and not path.name.startswith(".")
