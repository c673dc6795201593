"""The source for folders of documents: text, Markdown, HTML and PDF, one row per document or page."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa

from datadreamer_like.errors import ArgumentTypeError, DataError, require_extra
from datadreamer_like.graph.card import DataCardType

from ..base.columns import batched
from ..base.lazy_rows import LazyRowBatches
from ..base.options import takes_node_options
from ..base.preview import most_rows
from .document_readers import READERS, Page, reader_of
from .file_source import Files
from .text_file_source import TextFileSource

logger = logging.getLogger("datadreamer_like")

_COLUMNS = pa.schema([("path", pa.string()), ("title", pa.string()), ("text", pa.string()), ("page", pa.int64())])
# Documents may be long, so few are in memory.
_AT_ONCE = 32


class DocumentDataSource(TextFileSource):
    """Documents of a folder and its subfolders: text, Markdown, HTML (as Markdown) and PDF (its text, page by page).

    Columns: `path` (relative to the folder), `title` (of the document's metadata, its first heading, or its file name),
    `text`, and `page` (from 1; None for a document without pages). A PDF has one row per page, other documents one row;
    its lines are in the order of the file, where two columns may alternate.

    HTML becomes Markdown with its headings, lists and tables; of `<main>` or the only `<article>` if there is one,
    without navigation, scripts, images and addresses of links. Lines in a cell of a table are separated by `<br>`, a
    cell over several rows is repeated in each, and of tables that only arrange texts the texts remain. A document or
    page that cannot be read is a row whose text is None and whose reason is in `step.errors`; the run counts them. A
    page without text, such as a scan, is an empty text, and a warning says how many there are.

    Args:
        data_folder: The folder.
        data_files: A file, a pattern like `"**/*.pdf"` in the folder, or a list of them, instead of all documents.
        **config_kwargs: Options of `Step`, and: `encoding` (utf-8) of text and Markdown, and of HTML
            that declares none; `pages` (True), False for one
            row per PDF, with an empty line between its pages.

    Raises:
        MissingExtra: The readers of HTML and PDF are not installed, and there are such documents.
        DataError: There are no documents.

    Example:
        >>> from datadreamer_like import DataDreamer
        >>> with DataDreamer(":memory:"):  # doctest: +SKIP
        ...     DocumentDataSource("Handbook", data_folder="handbook").output.column_names
        ['path', 'title', 'text', 'page']
    """

    result_version: ClassVar[int] = 4  # 2: cells of HTML tables; 3: front matter is no heading; 4: encodings of HTML
    suffixes: ClassVar[tuple[str, ...]] = tuple(READERS)
    known_options: ClassVar[dict[str, Any]] = {"encoding": "utf-8", "pages": True}

    @takes_node_options
    def __init__(
        self,
        name: str,
        data_folder: str | os.PathLike[str] | None = None,
        data_files: Files | None = None,
        **config_kwargs: Any,
    ) -> None:
        self._folder = None if data_folder is None else Path(os.path.expanduser(data_folder))
        super().__init__(name, data_folder, data_files, **config_kwargs)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        for name, text in (("1.md", "one"), ("2.txt", "two")):
            (folder / name).write_text(text, encoding="utf-8")
        return {"data_folder": folder}

    def configure(self) -> None:
        """Checks the options, and that the readers are installed."""
        super().configure()
        if not isinstance(self.config["pages"], bool):
            raise ArgumentTypeError(f'"{self.name}": pages is {self.config["pages"]!r:.100}; expected True or False.')
        for file in self.files:
            require_extra("documents", *reader_of(file).modules, what=f'"{self.name}": {file.name}')

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the content of the files, their relative paths, and the options."""
        return super().fingerprint_values() | {"paths": [str(path) for path in self._paths()]}

    def run(self) -> LazyRowBatches:
        """Reads the documents, one after another."""
        for suffix in dict.fromkeys(path.suffix for path in self._paths()):
            count = sum(path.suffix == suffix for path in self._paths())
            self.register_data_card(DataCardType.DATASET_NAME, f"{self.name}: {count:,} documents ({suffix})")
        self.found_columns(_COLUMNS.names)
        return LazyRowBatches(self._batches, save=True)

    def _paths(self) -> list[PurePosixPath]:
        files = [file.absolute() for file in self.files]
        top = self._folder.absolute() if self._folder else Path(os.path.commonpath([file.parent for file in files]))
        return [PurePosixPath(Path(os.path.relpath(file, top)).as_posix()) for file in files]

    def _batches(self) -> Iterator[pa.RecordBatch]:
        self.usage.forget_failures()
        empty = start = 0
        for rows in batched(self._rows(), min(_AT_ONCE, most_rows(self) or _AT_ONCE)):
            for index, row in enumerate(rows, start):
                if row["error"] is not None:
                    self.usage.row_failed(index, row["error"])
                empty += row["text"] == ""
            start += len(rows)
            columns = {name: [row[name] for row in rows] for name in _COLUMNS.names}
            yield pa.RecordBatch.from_pydict(columns, schema=_COLUMNS)
        if empty:
            logger.warning(
                "%s: %s documents or pages have no text; scanned ones need text recognition first.",
                self.name, f"{empty:,}",
            )  # fmt: skip

    def _rows(self) -> Iterator[dict[str, Any]]:
        for file, path in zip(self.files, self._paths(), strict=True):
            for page in self._pages(file):
                yield {"path": str(path), "title": page.title or file.stem, "text": page.text, "page": page.number} | {
                    "error": None if page.problem is None else DataError(f"{path}: {page.problem}")
                }

    def _pages(self, file: Path) -> list[Page]:
        reader = reader_of(file)
        try:
            if reader.takes_text:
                with self.opened(file, newline=None) as stream:
                    pages = reader.read(stream.read())
            else:
                pages = reader.read(file, self.config["encoding"]) if reader.declares else reader.read(file)
        except DataError as error:
            reason = str(error).removeprefix(f'"{self.name}": ')
            return [Page(None, problem=reason.removeprefix(f"{file}, ").removeprefix(f"{file} "))]
        except Exception as error:  # parsers of damaged files raise many kinds
            return [Page(None, problem=f"it cannot be read ({type(error).__name__}: {error}).")]
        if self.config["pages"] or len(pages) == 1:
            return pages
        texts = [page.text for page in pages if page.text is not None]
        problem = next((page.problem for page in pages if page.problem is not None), None)
        return [Page(None if problem else "\n\n".join(texts), pages[0].title if pages else "", problem=problem)]
