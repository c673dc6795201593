"""Rows drawn at random without a model: to seed prompts, and to keep a dataset balanced."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, UnknownColumn, check_number, did_you_mean
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.rows import BATCH_SIZE, Batch
from datadreamer_like.report.table import Table, TableColumn
from datadreamer_like.storage.values import BAD_COLUMN_NAME, is_column_name

from ..base.lazy_rows import LazyRowBatches
from ..base.step import Step
from .samplers import Category, Date, Number, Person, Sampler, SubCategory, Weighted

_REPORT = (
    TableColumn("column", "column", align="left"),
    TableColumn("value", "value", align="left"),
    TableColumn("expected", "expected", "%", ",.1f", 100),
    TableColumn("drawn", "drawn", "%", ",.1f", 100),
    TableColumn("rows", "rows", "", ","),
)


class Sample(Step):
    """Draws rows from `columns`: a dictionary of names and `Category`, `SubCategory`, `Number`, `Date` or `Person`.

    Args: `n`, `columns`, `seed` (0), `lazy`. Outputs: the columns, in their order.

    Row i depends on the seed and on the column's name and sampler alone: a larger `n` adds rows to the same ones, and a
    further column changes no other. `report()` compares the shares that were drawn with those expected.

    Example:
        >>> from datadreamer_like import DataDreamer
        >>> with DataDreamer(":memory:"):
        ...     pets = Sample("Pets", args={"n": 4, "columns": {"pet": Category(["cat", "dog"]), "age": Number(1, 9)}})
        ...     sorted(pets.output[0])
        ['age', 'pet']
    """

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_arg("n", type=int, help="How many rows to draw.")
        self.register_arg("columns", type=dict, help="Names of the columns, and what they are drawn from.")
        self.register_arg("seed", required=False, default=0, type=int, help="Another one draws other rows.")
        self.register_arg("lazy", required=False, default=False, type=bool, help="Generate the rows lazily.")
        self.register_output("*", help="The columns.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        kinds: dict[str, Weighted] = {"cat": ["tabby", "siamese"], "dog": {"pug": 1, "beagle": 3}}
        columns = {
            "pet": Category({"cat": 2, "dog": 1}), "kind": SubCategory("pet", kinds),
            "age": Number(1, 9, integer=True), "weight": Number(0.5, 20),
        }  # fmt: skip
        return {"inputs": {}, "args": {"n": 3, "columns": columns}}

    def configure(self) -> None:
        """Checks the samplers and what they depend on, and registers their columns."""
        columns, what = self._args["columns"], f'"{self.name}"'
        check_number(self._args["n"], f"{what}: n", 1, whole=True)
        check_number(self._args["seed"], f"{what}: seed", 0, whole=True)
        if not columns:
            raise DefinitionError(f'{what}: columns is empty. Give at least one: {{"topic": Category([...])}}.')
        for name, sampler in columns.items():
            if not isinstance(name, str) or not is_column_name(name):
                raise DefinitionError(f"{what}: {BAD_COLUMN_NAME.format(name)}")
            if not name.strip():
                raise DefinitionError(f'{what}: the column name {name!r} is empty. Name the column: {{"topic": ...}}.')
            if not isinstance(sampler, Sampler):
                raise ArgumentTypeError(
                    f'{what}: column "{name}" is {sampler!r:.100}; expected Category, SubCategory, Number, Date or '
                    "Person."
                )
        depths = {name: self._check_parents(name) for name in columns}
        for name in sorted(columns, key=lambda name: depths[name]):  # the values of parents first
            if isinstance(columns[name], SubCategory):
                self._check_values(name, columns[name])
        self.replace_output("*", columns)

    def _check_parents(self, name: str) -> int:
        """Checks the columns that a column depends on, and returns how many there are."""
        columns, seen = self._args["columns"], [name]
        while isinstance(sampler := columns[seen[-1]], SubCategory):
            parent = sampler.parent
            if parent not in columns:
                raise UnknownColumn(
                    f'"{self.name}": column "{seen[-1]}" depends on "{parent}"; there are: {", ".join(columns)}.'
                    f"{did_you_mean(parent, columns)}"
                )
            if parent in seen:
                raise DefinitionError(f'"{self.name}": the columns {" and ".join(seen)} depend on each other.')
            if not isinstance(columns[parent], Category | SubCategory):
                raise DefinitionError(
                    f'"{self.name}": column "{seen[-1]}" depends on "{parent}", which is neither a Category nor a '
                    "SubCategory."
                )
            seen.append(parent)
        return len(seen) - 1

    def _check_values(self, name: str, sampler: SubCategory) -> None:
        for value in self._shares(sampler.parent):
            if value not in sampler.categories:
                raise DefinitionError(
                    f'"{self.name}": column "{name}" has no values for "{sampler.parent}" = {value!r}, only for: '
                    f"{', '.join(map(repr, sampler.categories))}."
                )

    def _shares(self, name: str) -> dict[Any, float]:
        """Returns the expected share of each value of a category."""
        sampler = self._args["columns"][name]
        if isinstance(sampler, Category):
            return {value: share for value, share in sampler.shares.items() if share}
        shares: Counter[Any] = Counter()
        for key, share in self._shares(sampler.parent).items():
            for value, part in sampler.categories[key].shares.items():
                shares[value] += share * part
        return {value: share for value, share in shares.items() if share}

    def fingerprint_parts(self) -> dict[str, str]:
        """Adds the order of the columns, which that of a dictionary leaves out."""
        return super().fingerprint_parts() | {"order of columns": fingerprint(list(self._args["columns"]))}

    def run(self) -> LazyRowBatches:
        """Draws the rows."""
        return LazyRowBatches(self._batches, total_num_rows=self._args["n"], save=not self._args["lazy"])

    def _batches(self) -> Iterator[Batch]:
        columns, n = self._args["columns"], self._args["n"]
        streams = {name: _stream(self._args["seed"], name) for name in columns}
        for start in range(0, n, BATCH_SIZE):
            size = min(BATCH_SIZE, n - start)
            drawn: Batch = {}
            waiting = list(columns)
            while waiting:  # parents first
                name = waiting.pop(0)
                parent = columns[name].depends_on
                if parent is not None and parent not in drawn:
                    waiting.append(name)
                    continue
                drawn[name] = columns[name].draw(streams[name].random(size), drawn.get(parent or "", ()))
            yield {name: drawn[name] for name in columns}

    def report(self) -> Table:
        """Returns how often each value was drawn, and its expected share; numbers and dates in up to five ranges."""
        rows: list[dict[str, Any]] = []
        for name, sampler in self._args["columns"].items():
            values = list(self.output[self.output_name_mapping[name]])
            if isinstance(sampler, Category | SubCategory | Person):
                expected = dict.fromkeys(Person.sexes, 0.5) if isinstance(sampler, Person) else self._shares(name)
                counts = Counter(value["sex"] for value in values) if isinstance(sampler, Person) else Counter(values)
                rows += [
                    {"column": name, "value": str(value), "expected": share, "drawn": counts[value] / len(values)}
                    | {"rows": counts[value]}
                    for value, share in expected.items()
                ]
            elif isinstance(sampler, Number | Date):
                rows += _ranges(name, sampler, values)
        return Table(_REPORT, rows, title=f"{self.name}: {self.output.num_rows or self._args['n']:,} rows")


def _ranges(name: str, sampler: Number | Date, values: list[Any]) -> list[dict[str, Any]]:
    parts = sampler.parts()
    starts = [first for first, _, _ in parts]
    counts = Counter(bisect_right(starts, value) - 1 for value in values)
    form = "" if isinstance(sampler, Date) else "," if sampler.integer else ",.3g"
    return [
        {"column": name, "value": f"{first:{form}}" + (f" to {last:{form}}" if first != last else "")}
        | {"expected": share, "drawn": counts[place] / len(values), "rows": counts[place]}
        for place, (first, last, share) in enumerate(parts)
    ]


def _stream(seed: int, name: str) -> np.random.Generator:
    """Returns the random numbers of one column; each row takes one of them."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int.from_bytes(digest, "little")])))
