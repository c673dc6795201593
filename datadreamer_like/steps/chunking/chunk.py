"""Cutting documents into chunks that fit a model's window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from datadreamer_like.errors import DefinitionError, check_number, require_extra
from datadreamer_like.graph.origin import From, Traced
from datadreamer_like.models.embedders.embedder import Embedder
from datadreamer_like.models.llms.llm import LLM
from datadreamer_like.models.words import words_of

from ..base.columns import check_texts, columns_together
from ..base.lazy_rows import LazyRowBatches
from ..base.step import Step
from .spans import Count, chunk_spans

_CARRIED = {"paths": "The documents' paths.", "titles": "Their titles.", "pages": "Their pages."}
_AT_ONCE = 1000


class Chunk(Step):
    """Cuts texts into chunks of at most `max_tokens` tokens: sections, paragraphs, sentences, where they fit.

    Inputs: `texts`, and optionally `paths`, `titles`, `pages`, which each chunk repeats. Args: `max_tokens`, `overlap`,
    `llm` or `embedder` (whose tokenizer counts; without either, words, and Chinese and Japanese characters),
    `headings`, `lazy`. Outputs: `chunks`, `starts` and `ends` (`chunk == text[start:end]`), `num_tokens`, `headings`,
    and the optional inputs.

    A chunk ends at the end of a paragraph if there is one in its second half, else of a sentence; only sentences longer
    than a chunk are cut between words. With `headings`, no chunk crosses a Markdown heading, and the column `headings`
    has those that the chunk is under, outermost first. With `overlap`, the next chunk of a section repeats up to so
    many tokens, in whole sentences. Missing and empty texts have no chunks. `trace` leads from a chunk to its document.

    Example:
        >>> docs = DocumentDataSource("Handbook", data_folder="handbook").output  # doctest: +SKIP
        >>> Chunk(  # doctest: +SKIP
        ...     "Chunks",
        ...     inputs={"texts": docs["text"], "paths": docs["path"]},
        ...     args={"llm": llm, "max_tokens": 400, "overlap": 40},
        ... )
    """

    result_version: ClassVar[int] = 2  # 2: words without punctuation, Chinese and Japanese characters

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("texts", help="The texts.")
        for name, what in _CARRIED.items():
            self.register_input(name, required=False, help=what)
        self.register_arg("max_tokens", type=int, help="Most tokens of a chunk.")
        self.register_arg("overlap", required=False, default=0, type=int, help="Most tokens that the next one repeats.")
        self.register_arg("llm", required=False, type=LLM, help="The LLM whose tokens are counted.")
        self.register_arg("embedder", required=False, type=Embedder, help="The embedder whose tokens are counted.")
        self.register_arg("headings", required=False, default=True, type=bool, help="Cut at Markdown headings.")
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate the rows lazily.")
        self.register_output("chunks", help="The chunks.")
        self.register_output("starts", help="Position of each in its text, in characters.")
        self.register_output("ends", help="Position of its end.")
        self.register_output("num_tokens", help="Its tokens.")
        self.register_output("headings", help="The headings that it is under, outermost first.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        text = "# Cats\n\nCats purr. They sleep all day.\n\n# Dogs\n\nDogs bark."
        return {"inputs": {"texts": [text]}, "args": {"max_tokens": 6}}

    def configure(self) -> None:
        """Checks the numbers and the tokenizer, and registers the columns that chunks repeat."""
        args, what = self._args, f'"{self.name}"'
        check_number(args["max_tokens"], f"{what}: max_tokens", 1, whole=True)
        check_number(args["overlap"], f"{what}: overlap", 0, args["max_tokens"] - 1, whole=True)
        if args["llm"] is not None and args["embedder"] is not None:
            raise DefinitionError(f"{what}: give llm or embedder, not both: one of them counts the tokens.")
        if args["headings"]:
            require_extra("documents", "markdown_it", what=f"{what}: headings=True")
        for name in _CARRIED:
            if name in self._inputs:
                self.register_output(name, help=_CARRIED[name])

    def run(self) -> LazyRowBatches:
        """Cuts the texts."""
        return LazyRowBatches(self._batches, save=not self._args["lazy"])

    def _count(self) -> Count:
        model = self._args["llm"] or self._args["embedder"]
        return (lambda text: len(words_of(text))) if model is None else model.count_tokens

    def _batches(self) -> Iterator[Traced]:
        count, args = self._count(), self._args
        row = 0
        made: list[dict[str, Any]] = []
        rows: list[int] = []
        for batch in columns_together(self._inputs, f'"{self.name}"'):
            carried = [name for name in _CARRIED if name in batch]
            check_texts(batch["texts"], self._inputs["texts"].column_names[0], f'"{self.name}"', row)
            for place, text in enumerate(batch["texts"]):
                for span in chunk_spans(text or "", count, args["max_tokens"], args["overlap"], args["headings"]):
                    made.append(
                        {
                            "chunks": text[span.start : span.end],
                            "starts": span.start,
                            "ends": span.end,
                            "num_tokens": span.num_tokens,
                            "headings": list(span.headings),
                            **{name: batch[name][place] for name in carried},
                        }
                    )
                    rows.append(row)
                row += 1
                if len(made) >= _AT_ONCE:
                    yield self._batch(made, rows)
                    made, rows = [], []
        if made:
            yield self._batch(made, rows)

    def _batch(self, made: list[dict[str, Any]], rows: list[int]) -> Traced:
        columns = {name: [row[name] for row in made] for name in made[0]}
        return Traced(columns, *(From(name, rows) for name in self._inputs))
