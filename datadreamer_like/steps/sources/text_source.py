"""The source for text files: one row per line, paragraph or file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.output import BATCH_SIZE, Batch

from ..base.lazy_rows import LazyRowBatches
from .file_source import Files, FileSource


class TextDataSource(FileSource):
    """Lines of text files, in a column `text`.

    Args:
        name: Name of the step.
        data_folder: Folder whose `.txt` files are read, or that `data_files` are relative to.
        data_files: A file, a pattern like `"part-*.txt"`, or a list of them. `.gz`, `.bz2` and `.xz` are decompressed.
        **config_kwargs: Options of `Step` and of the reader: `encoding` (utf-8), `keep_linebreaks` (False), `sample_by`
            (`"line"`, `"paragraph"`: separated by empty lines, or `"document"`: one row per file).

    Raises:
        DataError: A file does not exist or cannot be read; the message names file and line.
        EmptyDataset: There are no rows.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text")
    known_options: ClassVar[dict[str, Any]] = {"encoding": "utf-8", "keep_linebreaks": False, "sample_by": "line"}

    def __init__(
        self,
        name: str,
        data_folder: str | os.PathLike[str] | None = None,
        data_files: Files | None = None,
        **config_kwargs: Any,
    ) -> None:
        if config_kwargs.get("sample_by", "line") not in ("line", "paragraph", "document"):
            raise DefinitionError(
                f'"{name}": sample_by is {config_kwargs["sample_by"]!r}; expected "line", "paragraph" or "document".'
            )
        super().__init__(name, data_folder, data_files, config_kwargs)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        (folder / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
        return {"data_files": folder / "texts.txt"}

    def run(self) -> LazyRowBatches:
        """Reads the files."""
        self.register_files()
        self.found_columns(["text"])
        return LazyRowBatches(self._batches, save=True)

    def _batches(self) -> Iterator[Batch]:
        texts = self._texts()
        while portion := list(islice(texts, BATCH_SIZE)):
            yield {"text": portion}

    def _texts(self) -> Iterator[str]:
        split = {"line": self._lines, "paragraph": self._paragraphs, "document": self._document}
        for file in self.files:
            with self.opened(file) as stream:
                yield from split[self.config["sample_by"]](_universal(stream))

    def _lines(self, lines: Iterator[str]) -> Iterator[str]:
        return lines if self.config["keep_linebreaks"] else (line.removesuffix("\n") for line in lines)

    def _paragraphs(self, lines: Iterator[str]) -> Iterator[str]:
        held: list[str] = []
        for line in lines:
            if line.strip():
                held.append(line)
            elif held:
                yield "".join(held).removesuffix("\n")
                held = []
        if held:
            yield "".join(held).removesuffix("\n")

    def _document(self, lines: Iterator[str]) -> Iterator[str]:
        text = "".join(lines)
        if text:
            yield text


def _universal(stream: Any) -> Iterator[str]:
    """Yields lines with their line ends converted to a line feed."""
    for line in stream:
        body = line.rstrip("\r\n")
        # A stream with unchanged line ends splits at "\r" too.
        yield body if body == line else f"{body}\n"
