"""The base of file sources: finding files, reading them as text, and locating errors."""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MissingFile, did_you_mean
from datadreamer_like.graph.card import DataCardType
from datadreamer_like.graph.fingerprint import ByContent

from ..base.options import NodeOptions, check_known, taken_options, takes_node_options
from .data_source import Source
from .encodings import advice_on_encoding, advice_on_first_bytes, binary, fault, plain_suffix

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class FileSource(Source):
    """Base of sources that read text files. The fingerprint depends on the files' content, not on their paths.

    Attributes:
        suffixes: Suffixes of the files that are read from a folder, also in compressed form.
        known_options: Options of the reader, with their defaults.
        example_text: Content of a file, for `example`.
    """

    suffixes: ClassVar[tuple[str, ...]]
    known_options: ClassVar[dict[str, Any]]
    example_text: ClassVar[str]

    @takes_node_options
    def __init__(
        self,
        name: str,
        data_folder: str | os.PathLike[str] | None = None,
        data_files: Files | None = None,
        **config_kwargs: Any,
    ) -> None:
        step_options = taken_options(config_kwargs, NodeOptions.__annotations__)
        check_known(config_kwargs, self.known_options, f'"{name}": {type(self).__name__}')
        self.config = {**self.known_options, **config_kwargs}
        self.files = _find(name, data_folder, data_files, self.suffixes)
        try:
            known = codecs.lookup(self.config["encoding"]).name
            io.TextIOWrapper(io.BytesIO(), encoding=known)  # some codecs, such as rot13, are not of texts
        except (LookupError, TypeError, ValueError) as error:
            raise DefinitionError(
                f'"{name}": there is no encoding "{self.config["encoding"]}". Common ones: utf-8, latin-1, utf-16.'
            ) from error
        self._encoding = "utf-8-sig" if known == "utf-8" else known
        super().__init__(name, **step_options)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        file = folder / f"texts{cls.suffixes[0]}"
        file.write_text(cls.example_text, encoding="utf-8")
        return {"data_files": file}

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

    @contextmanager
    def opened(self, file: Path, newline: str | None = "") -> Iterator[IO[str]]:
        """Opens a file as text, by default with unchanged line ends; `DataError` if it cannot be read or decoded."""
        if advice := advice_on_first_bytes(file, self._encoding):
            raise DataError(f'"{self.name}": {file} is not {self.config["encoding"]}. {advice}')
        try:
            with io.TextIOWrapper(binary(file), encoding=self._encoding, newline=newline) as stream:
                if self._encoding.endswith(("-le", "-be")) and stream.read(1) != "\ufeff":
                    stream.seek(0)  # only the first character may be the mark
                yield stream
        except UnicodeError as error:
            line, offset, byte = fault(file, self._encoding) or (1, 0, 0)
            reason = error.reason if isinstance(error, UnicodeDecodeError) else error
            raise DataError(
                f'"{self.name}": {file}, line {line}: byte 0x{byte:02x} (byte {offset} of the file) is not '
                f"{self.config['encoding']} ({reason}). {advice_on_encoding(file, self._encoding)}"
            ) from error
        except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
            raise DataError(f'"{self.name}": {file} is damaged ({error}). Download it again.') from error
        except OSError as error:
            raise DataError(f'"{self.name}": {file} cannot be read ({error.strerror or error}).') from error


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
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file() and _has_suffix(path, suffixes))
    if not found:
        raise DataError(f'"{name}": the folder {folder} contains no file that ends in {" or ".join(suffixes)}.')
    return found


def _matches(name: str, folder: str | os.PathLike[str], entry: str, suffixes: tuple[str, ...]) -> list[Path]:
    if "://" in entry:
        raise DataError(f'"{name}": {entry} is a URL. Download the file first and give its path.')
    path = Path(folder, entry)
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
