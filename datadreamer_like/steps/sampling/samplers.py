"""What the columns of `Sample` are drawn from: categories, numbers, dates, persons.

Each turns random numbers from 0 to 1, always the same number of them per row, into values; so row i does not depend on
the number of rows.
"""

from __future__ import annotations

import datetime
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number, did_you_mean, require_extra

Uniforms = np.ndarray[Any, np.dtype[np.float64]]
"""Random numbers from 0 to below 1, float64 [rows]."""

Weighted = Sequence[Any] | Mapping[Any, float]
"""Values, equally likely; or values with their weights."""


_FAMILY_NAME_FIRST = {"hu": " ", "ja": " ", "ko": "", "vi": " ", "zh": ""}
"""What is between the family name, which comes first, and the given name, by language."""
_MOST_PARTS = 5  # of a range, in the report of what was drawn


class Sampler:
    """Base of what a column is drawn from."""

    @property
    def depends_on(self) -> str | None:
        """The column that the values depend on; None for most."""
        return None

    def draw(self, uniforms: Uniforms, given: Sequence[Any]) -> list[Any]:
        """Returns one value per row; `given` are the values of the column that they depend on."""
        raise NotImplementedError(f"{type(self).__name__} has no draw().")


@dataclass(frozen=True)
class Category(Sampler):
    """One of some values: a list, all equally likely, or a dictionary of values and weights.

    Weights are 0 or more and need not add up to 1. The order of the values matters to what is drawn.

    Example:
        >>> Category({"cats": 3, "dogs": 1}).shares
        {'cats': 0.75, 'dogs': 0.25}
    """

    values: Weighted

    def __post_init__(self) -> None:
        if isinstance(self.values, str | bytes) or not isinstance(self.values, Sequence | Mapping):
            raise ArgumentTypeError(
                f"Category: values is {self.values!r:.100}; expected a list of values, or a dictionary of values and "
                "weights."
            )
        if not self.values:
            raise DefinitionError("Category: there are no values. Give at least one.")
        if isinstance(self.values, Mapping):
            for value, weight in self.values.items():
                check_number(weight, f"Category: the weight of {value!r:.100}")
            if not sum(self.values.values()):
                raise DefinitionError("Category: all weights are 0. Give one of them more.")
            return
        for value in self.values:
            if isinstance(value, list | dict | set):
                raise ArgumentTypeError(f"Category: the value {value!r:.100} is not a text, number or date.")
        if len(set(self.values)) < len(self.values):
            raise DefinitionError("Category: a value is listed twice. Give weights: Category({value: 2, ...}).")

    def __fingerprint__(self) -> tuple[Any, ...]:
        return "Category", tuple(self.shares.items())

    @property
    def shares(self) -> dict[Any, float]:
        """The expected share of each value."""
        weights = self.values if isinstance(self.values, Mapping) else dict.fromkeys(self.values, 1)
        total = sum(weights.values())
        return {value: weight / total for value, weight in weights.items()}

    @cached_property
    def _steps(self) -> tuple[list[Any], list[float]]:
        shares = {value: share for value, share in self.shares.items() if share}
        return list(shares), list(accumulate(shares.values()))[:-1]

    def draw(self, uniforms: Uniforms, given: Sequence[Any]) -> list[Any]:
        """Returns one value per row."""
        values, ends = self._steps
        return [values[bisect_right(ends, uniform)] for uniform in uniforms.tolist()]


@dataclass(frozen=True)
class SubCategory(Sampler):
    """One of the values for the row's value of another column, `parent`.

    Args:
        parent: The column that the values depend on; a `Category` or `SubCategory`.
        values: For each of its values, what `Category` takes.

    Example:
        >>> SubCategory("pet", {"cat": ["tabby", "siamese"], "dog": {"beagle": 2, "pug": 1}}).parent
        'pet'
    """

    parent: str
    values: Mapping[Any, Weighted]
    categories: dict[Any, Category] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.parent, str) or not isinstance(self.values, Mapping):
            raise ArgumentTypeError(
                'SubCategory takes the name of a column and a dictionary: SubCategory("topic", {"cats": [...], ...}).'
            )
        object.__setattr__(self, "categories", {key: Category(values) for key, values in self.values.items()})

    @property
    def depends_on(self) -> str:
        """The column that the values depend on."""
        return self.parent

    def __fingerprint__(self) -> tuple[Any, ...]:
        return "SubCategory", self.parent, self.categories

    def draw(self, uniforms: Uniforms, given: Sequence[Any]) -> list[Any]:
        """Returns one value per row."""
        return [self.categories[key].draw(uniforms[i : i + 1], ())[0] for i, key in enumerate(given)]


@dataclass(frozen=True)
class Number(Sampler):
    """A number, all equally likely: from `low` to below `high`, or with `integer` from `low` to `high`, both included.

    Example:
        >>> Number(1, 6, integer=True)
        Number(low=1, high=6, integer=True)
    """

    low: float
    high: float
    integer: bool = False

    def __post_init__(self) -> None:
        check_number(self.low, "Number: low", -(2**53), 2**53, whole=self.integer)
        check_number(self.high, "Number: high", -(2**53), 2**53, whole=self.integer)
        if self.low > self.high:
            raise DefinitionError(f"Number: low is {self.low}, more than high, {self.high}. Exchange them.")

    def draw(self, uniforms: Uniforms, given: Sequence[Any]) -> list[Any]:
        """Returns one value per row."""
        if not self.integer:
            return list((self.low + uniforms * (self.high - self.low)).tolist())
        low, count = int(self.low), int(self.high) - int(self.low) + 1
        return [low + min(int(uniform * count), count - 1) for uniform in uniforms.tolist()]

    def parts(self) -> list[tuple[float, float, float]]:
        """Returns ranges that divide what can be drawn: first and last value of each, and its expected share."""
        if self.integer:
            low, count = int(self.low), int(self.high) - int(self.low) + 1
            most = min(_MOST_PARTS, count)
            starts = [low + count * place // most for place in range(most + 1)]
            return [(first, stop - 1, (stop - first) / count) for first, stop in pairwise(starts)]
        most = _MOST_PARTS if self.low < self.high else 1
        ends = [self.low + (self.high - self.low) * place / most for place in range(most + 1)]
        return [(first, last, 1 / most) for first, last in pairwise(ends)]


@dataclass(frozen=True)
class Date(Sampler):
    """A day from `start` to `end`, both included: dates, or texts such as "2024-12-31".

    Example:
        >>> Date("2024-01-01", "2024-12-31").start
        '2024-01-01'
    """

    start: str | datetime.date
    end: str | datetime.date

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise DefinitionError(f"Date: start is {self.first}, after end, {self.last}. Exchange them.")

    @property
    def first(self) -> datetime.date:
        """The first day."""
        return _day(self.start)

    @property
    def last(self) -> datetime.date:
        """The last day."""
        return _day(self.end)

    def draw(self, uniforms: Uniforms, given: Sequence[Any]) -> list[Any]:
        """Returns one value per row."""
        return [datetime.date.fromordinal(day) for day in self._ordinals.draw(uniforms, ())]

    def parts(self) -> list[tuple[datetime.date, datetime.date, float]]:
        """Returns ranges that divide what can be drawn: first and last day of each, and its expected share."""
        day = datetime.date.fromordinal
        return [(day(int(first)), day(int(last)), share) for first, last, share in self._ordinals.parts()]

    @property
    def _ordinals(self) -> Number:
        return Number(self.first.toordinal(), self.last.toordinal(), integer=True)


@dataclass(frozen=True)
class Person(Sampler):
    """An invented person: a dictionary of name, first_name, last_name, sex, email, city and job, by the library faker.

    Names, cities and jobs are those of the `locale`, such as "de_DE"; a name has the family name first where that is
    the custom. The address is at example.com. Two rows may have the same name, and so the same address. Another version
    of faker may draw others from the same seed.

    Example:
        >>> Person(locale="fr_FR")  # doctest: +SKIP
        Person(locale='fr_FR')
    """

    locale: str = "en_US"

    sexes: ClassVar[tuple[str, str]] = ("female", "male")

    def __post_init__(self) -> None:
        require_extra("persons", "faker", what="Person")
        from faker.config import AVAILABLE_LOCALES

        if self.locale not in AVAILABLE_LOCALES:
            raise DefinitionError(
                f"Person: faker has no locale {self.locale!r:.100}.{did_you_mean(str(self.locale), AVAILABLE_LOCALES)}"
            )

    def __fingerprint__(self) -> tuple[Any, ...]:
        import faker

        order = ["family name first"] if self._language in _FAMILY_NAME_FIRST else []
        return "Person", self.locale, faker.VERSION, *order

    @property
    def _language(self) -> str:
        return self.locale.partition("_")[0]

    def draw(self, uniforms: Uniforms, given: Sequence[Any]) -> list[Any]:
        """Returns one value per row."""
        from faker import Faker

        fake = Faker(self.locale)
        return [self._person(fake, int(uniform * 2**53)) for uniform in uniforms.tolist()]

    def _person(self, fake: Any, seed: int) -> dict[str, str]:
        fake.seed_instance(seed)
        sex = self.sexes[seed % 2]
        first = str(getattr(fake, f"first_name_{sex}")())
        last = str(getattr(fake, f"last_name_{sex}")())
        address = ".".join(filter(None, map(_ascii, (first, last)))) or f"person{seed % 10_000}"
        between = _FAMILY_NAME_FIRST.get(self._language)
        name = f"{first} {last}" if between is None else f"{last}{between}{first}"
        return {
            "name": name, "first_name": first, "last_name": last, "sex": sex,
            "email": f"{address}@example.com", "city": str(fake.city()), "job": str(fake.job()),
        }  # fmt: skip


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return "".join(character for character in plain if character.isalnum())


def _day(value: Any) -> datetime.date:
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise DefinitionError(
            f'Date: {value!r:.100} is not a day. Expected a date, or a text: "2024-12-31".'
        ) from error
