"""Having rows reviewed by a person, in a file for spreadsheets that is read back."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, did_you_mean
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.origin import From, Traced
from datadreamer_like.graph.output import OutputDataset, OutputIterableDataset
from datadreamer_like.graph.rows import Batch
from datadreamer_like.storage.exports import local_path, new_file

from ..base.columns import whole
from ..base.lazy_rows import LazyRowBatches
from ..base.step import Step

logger = logging.getLogger("datadreamer_like")

_ID, _REVIEW = "id", "review"
_LONGEST = 32_000  # characters in a cell of a spreadsheet
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class ReviewFile(Step):
    """Has a person review rows: writes them to a CSV file, and reads its column `review` when the script runs again.

    Inputs: `inputs` (the column to review). Args: `file` (path of the CSV file), `show` (names of further columns to
    write), `labels` (the values that a review may have; by default any text). Outputs: all columns of the step that the
    inputs come from, and `review` (None for a row that is not reviewed).

    If there is no such file, it is written, complete or not at all, and the script goes on without reviews. Fill the
    column `review` and run it again: this step and those that depend on it then run with the reviews. `num_unreviewed`
    counts the rows that are left; the data card has the counts.

    Rows are matched by their `id`, a hash of the values shown, not by position: the file may be sorted, filtered or
    split, and columns may be added. If the inputs have new rows, they are added at the end of the file; reviews are
    never changed. Only `review` is read: a warning says in how many rows other values were edited. Commas, semicolons
    and tabs are read. A value that a spreadsheet would take for a formula is written with an apostrophe before it, and
    one of more than 32,000 characters is cut.

    Raises:
        DataError: The file is not UTF-8, lacks a column or has it twice, has a review that is not in `labels` or two
            for one row, or none of its reviewed rows is among the inputs.

    Example:
        >>> args = {"file": "review.csv", "show": ["label"], "labels": ["spam", "ham"]}  # doctest: +SKIP
        >>> review = ReviewFile("By hand", {"inputs": suspects.output["text"]}, args)  # doctest: +SKIP
        >>> right = review.filter(lambda row: row["review"] is not None)  # doctest: +SKIP
    """

    neutral_args: ClassVar[frozenset[str]] = Step.neutral_args | {"file"}

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("inputs", help="The column to review. All columns of its step are kept.")
        self.register_arg("file", type=(str, os.PathLike), help="Path of the CSV file.")
        self.register_arg("show", required=False, default=[], type=list, help="Further columns to write to the file.")
        self.register_arg("labels", required=False, type=list, help="What a review may be.", default_help="any text")
        self.register_output("*", help="All columns of the step that the inputs come from.")
        self.register_output(_REVIEW, help="What the person wrote.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"inputs": ["one text", "another text"]}, "args": {"file": folder / "review.csv"}}

    def configure(self) -> None:
        """Checks the arguments, and registers the columns of the input's step as outputs."""
        columns = whole(self._inputs["inputs"]).column_names
        for name in self.args["show"]:
            if name not in columns:
                raise DefinitionError(
                    f'"{self.name}": show has "{name}"; the step of its inputs has: {", ".join(columns)}.'
                    f"{did_you_mean(str(name), columns)}"
                )
        if taken := sorted({*self._shown} & {_ID, _REVIEW}) or [_REVIEW] * (_REVIEW in columns):
            raise DefinitionError(
                f'"{self.name}": a column is named "{taken[0]}", as one of the file. Rename it first.'
            )
        labels = [str(label) for label in self.args["labels"] or []]
        if len(set(labels)) < len(labels) or any(not label.strip() for label in labels):
            raise DefinitionError(f'"{self.name}": labels are empty or the same as text: {", ".join(labels)}.')
        self._file = local_path(self.args["file"], f'"{self.name}"')
        if self._file.is_dir():
            raise ArgumentTypeError(f'"{self.name}": {self._file} is a folder. Give the path of a CSV file.')
        self.replace_output("*", columns)

    @property
    def num_unreviewed(self) -> int:
        """Number of rows without a review."""
        return sum(review is None for review in self.output[self.output_name_mapping[_REVIEW]])

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of the arguments, inputs and reviews."""
        return super().fingerprint_parts() | {"reviews": fingerprint(dict(sorted(self._reviews.items())))}

    def run(self) -> LazyRowBatches:
        """Joins the rows with their reviews."""
        dataset = whole(self._inputs["inputs"])

        def batches() -> Iterator[Traced]:
            ids, place, found, left = _Ids(self._shown), 0, 0, {*self._reviews}
            for batch in dataset.batches():
                names = ids.of(batch)
                reviews = [self._reviews.get(name) for name in names]
                left.difference_update(names)
                found += sum(review is not None for review in reviews)
                yield Traced({**batch, _REVIEW: reviews}, From("inputs", range(place, place + len(names))))
                place += len(names)
            if self._reviews and not found:
                raise DataError(
                    f'"{self.name}": {self._file} has reviews of other rows than the inputs. Give another file.'
                )
            text = f"{found:,} of {place:,} rows"
            if left:
                text += f"; {len(left):,} reviews are of rows that are not among the inputs"
            self.card.register("Reviewed", text)

        return LazyRowBatches(batches, dataset.num_rows, save=True, like=dataset.rows.schema)

    def make_output(self) -> OutputDataset | OutputIterableDataset:
        """Makes or loads the rows, and writes those that the file does not have."""
        output = super().make_output()
        if self.session is not None and self.session.planned is None:
            self._write_new_rows(output)
        return output

    @property
    def _shown(self) -> list[str]:
        return list(dict.fromkeys([self._inputs["inputs"].column_names[0], *self.args["show"]]))

    @cached_property
    def _in_file(self) -> tuple[list[str], list[list[str]]]:
        """The columns and rows of the file; nothing if there is none."""
        if not self._file.exists():
            return [], []
        try:
            text = self._file.read_bytes().decode("utf-8-sig")  # line ends inside values stay
        except UnicodeDecodeError as error:
            raise DataError(f'"{self.name}": {self._file} is not UTF-8. Save it as "CSV UTF-8".') from error
        needed = [_ID, _REVIEW, *self._shown]
        parts = [csv.reader(io.StringIO(text, newline=""), delimiter=sign) for sign in ",;\t"]
        headers = [next(rows, []) for rows in parts]
        header = max(headers, key=lambda names: (len({*needed} & {*names}), len(names)))
        rows = parts[headers.index(header)]
        if missing := [name for name in needed if name not in header]:
            raise DataError(
                f'"{self.name}": {self._file} lacks the column {", ".join(missing)}; it has: {", ".join(header)}. '
                "Columns may be added, not renamed or removed: restore the header, or move the file away for a new one."
            )
        if twice := [name for name in needed if header.count(name) > 1]:
            raise DataError(f'"{self.name}": {self._file} has the column {twice[0]} twice. Remove or rename one.')
        return header, [row for row in rows if any(row)]

    @cached_property
    def _reviews(self) -> dict[str, Any]:
        """The reviews in the file by the row's id."""
        labels = self.args["labels"]
        allowed = None if labels is None else {str(label): label for label in labels}
        found: dict[str, Any] = {}
        header, rows = self._in_file
        for cells in rows:
            row = dict(zip(header, cells, strict=False))  # of a note that a person added, fewer or more
            name, said = row.get(_ID, "").strip(), row.get(_REVIEW, "").strip()
            if not said:
                continue
            if allowed is not None and said not in allowed:
                raise DataError(
                    f'"{self.name}": {self._file}, row {name}: the review "{said:.100}" is not among the labels '
                    f"{', '.join(allowed)}.{did_you_mean(said, allowed)}"
                )
            review = said if allowed is None else allowed[said]
            if found.setdefault(name, review) != review:
                raise DataError(f'"{self.name}": {self._file} has two reviews of row {name}: {found[name]}, {review}.')
        return found

    def _write_new_rows(self, output: OutputDataset | OutputIterableDataset) -> None:
        header, rows = self._in_file
        header = header or [_ID, _REVIEW, *self._shown]
        place_of_id = header.index(_ID)
        known = {
            row[place_of_id].strip(): dict(zip(header, row, strict=False)) for row in rows if len(row) > place_of_id
        }
        ids, renamed = _Ids(self._shown), self.output_name_mapping
        new, unreviewed, edited = [], 0, 0
        for batch in output.batches():
            unreviewed += sum(review is None for review in batch[renamed[_REVIEW]])
            shown = {name: batch[renamed[name]] for name in self._shown}
            for place, name in enumerate(ids.of(shown)):
                cells = {column: _cell(values[place]) for column, values in shown.items()}
                if name not in known:
                    new.append({_ID: name, **cells})
                elif any(_words(known[name].get(column, "")) != _words(cell) for column, cell in cells.items()):
                    edited += 1
        if new:
            with (
                new_file(self._file, f'"{self.name}"') as draft,
                draft.open("w", encoding="utf-8-sig", newline="") as file,
            ):
                added = ([row.get(name, "") for name in header] for row in new)
                csv.writer(file).writerows([header, *rows, *added])
        if edited:
            logger.warning(
                "%s: %s rows of %s have other values in %s than the inputs. Only the column %s is read: write what is "
                "to be used there.", self.name, f"{edited:,}", self._file, ", ".join(self._shown), _REVIEW,
            )  # fmt: skip
        if unreviewed:
            logger.warning("%s: %s rows are not reviewed yet: %s", self.name, f"{unreviewed:,}", self._file)


class _Ids:
    """Gives rows ids: a hash of the values of some columns, with a number for further rows of the same values."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        self._seen: Counter[bytes] = Counter()

    def of(self, batch: Batch) -> list[str]:
        return [self._id(values) for values in zip(*(batch[name] for name in self._columns), strict=True)]

    def _id(self, values: tuple[Any, ...]) -> str:
        digest = hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._seen[digest] += 1
        count = self._seen[digest]
        # The letter keeps spreadsheets from reading digits and an "e" as a number.
        return f"r{digest.hex()}" if count == 1 else f"r{digest.hex()}-{count}"


def _words(cell: str) -> list[str]:
    """Returns what is compared of a cell: spreadsheets change white space, and take the apostrophe off."""
    return cell.removeprefix("'").split()


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    shown = f"'{text}" if text.startswith(_FORMULA) else text
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} ..."
