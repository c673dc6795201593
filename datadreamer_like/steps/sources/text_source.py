"""The source for text files: one row per line, paragraph or file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError

from ..base.columns import batched
from ..base.lazy_rows import LazyRowBatches
from .text_file_source import TextFileSource


class TextDataSource(TextFileSource):
    """Lines of text files, in a column `text`.

    Files are given as in `CSVDataSource`; those of a folder are `.txt` and `.text` files. Options of the reader are
    `encoding` (utf-8), `keep_linebreaks` (False) and `sample_by` (`"line"`, `"paragraph"`: separated by empty lines, or
    `"document"`: one row per file).

    Raises:
        DataError: A file does not exist or cannot be read; the message names file and line.
        EmptyDataset: There are no rows.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text")
    example_text: ClassVar[str] = "one\ntwo\n"
    known_options: ClassVar[dict[str, Any]] = {"encoding": "utf-8", "keep_linebreaks": False, "sample_by": "line"}

    def configure(self) -> None:
        """Checks the options."""
        super().configure()
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
