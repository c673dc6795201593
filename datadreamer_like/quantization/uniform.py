"""Checks and the layout entry of the methods that store weights as evenly spaced integers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats import Entry
from datadreamer_like.formats.uniform import WeightGranularity


def check_uniform(bits: object, granularity: object) -> None:
    """Raises `DefinitionError` for bits other than 2 to 8, or an unknown granularity."""
    if type(bits) is not int or not 2 <= bits <= 8:
        raise DefinitionError(f"bits is {bits!r}; it must be a whole number from 2 to 8.")
    if granularity not in get_args(WeightGranularity):
        raise DefinitionError(f'granularity is {granularity!r}; choose "tensor", "row" or "column".')


def check_groups(bits: object, group_size: object, argument: str = "group_size") -> None:
    """Raises `DefinitionError` for bits other than 2 to 8, or groups of no inputs."""
    check_uniform(bits, "row")
    if type(group_size) is not int or group_size < 1:
        raise DefinitionError(
            f"{argument} is {group_size!r}; it must be a number of inputs that share a scale, as 128."
        )


def uniform_layout(
    names: Iterable[str], bits: int, granularity: WeightGranularity | int, affine: bool = False
) -> Entry:
    """Returns the "uniform" entry of layers of these names."""
    options = {"bits": bits, "granularity": granularity, "affine": affine}
    return {"kind": "uniform", **options, "modules": {name: {} for name in names}}
