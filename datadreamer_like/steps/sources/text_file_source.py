"""The base of sources that read text files: their encoding, and errors that name the line."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar

from datadreamer_like.errors import DataError, DefinitionError

from .encodings import advice_on_encoding, advice_on_first_bytes, binary, fault
from .file_source import FileSource


class TextFileSource(FileSource):
    """Base of sources that read text files; `encoding` is among their options.

    Attributes:
        example_text: Content of a file, for `example`.
    """

    example_text: ClassVar[str]

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        file = folder / f"texts{cls.suffixes[0]}"
        file.write_text(cls.example_text, encoding="utf-8")
        return {"data_files": file}

    def configure(self) -> None:
        """Checks the encoding."""
        _ = self._encoding

    @cached_property
    def _encoding(self) -> str:
        try:
            known = codecs.lookup(self.config["encoding"]).name
            io.TextIOWrapper(io.BytesIO(), encoding=known)  # some codecs, such as rot13, are not of texts
        except (LookupError, TypeError, ValueError) as error:
            raise DefinitionError(
                f'"{self.name}": there is no encoding "{self.config["encoding"]}". Common ones: utf-8, latin-1, utf-16.'
            ) from error
        return "utf-8-sig" if known == "utf-8" else known

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
