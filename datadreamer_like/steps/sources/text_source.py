"""The source for text files: one row per line, paragraph or file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError

from ..base.lazy_rows import LazyRowBatches
from .data_source import batched
from .file_source import FileSource


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

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        (folder / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
        return {"data_files": folder / "texts.txt"}

    def configure(self) -> None:
        """Checks the options."""
        by = self.config["sample_by"]
        if by not in ("line", "paragraph", "document"):
            raise DefinitionError(f'"{self.name}": sample_by is {by!r}; expected "line", "paragraph" or "document".')

    def run(self) -> LazyRowBatches:
        """Reads the files."""
        self.register_files()
        self.found_columns(["text"])
        return LazyRowBatches(lambda: ({"text": texts} for texts in batched(self._texts())), save=True)

    def _texts(self) -> Iterator[str]:
        for file in self.files:
            with self.opened(file, newline=None) as stream:
                if self.config["sample_by"] == "document":
                    if text := stream.read():
                        yield text
                elif self.config["sample_by"] == "paragraph":
                    for is_empty, lines in groupby(stream, lambda line: not line.strip()):
                        if not is_empty:
                            yield "".join(lines).removesuffix("\n")
                else:
                    yield from (
                        stream if self.config["keep_linebreaks"] else (line.removesuffix("\n") for line in stream)
                    )
