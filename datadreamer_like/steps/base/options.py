"""Options that many calls of a step take, each family typed once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypedDict

from datadreamer_like.errors import DefinitionError, did_you_mean


class NodeOptions(TypedDict, total=False):
    """Options that every step takes; see `Step`."""

    progress_interval: float | None
    force: bool
    verbose: bool | None
    log_level: int | None
    save_num_proc: int | None
    save_num_shards: int | None
    background: bool


class RunOptions(NodeOptions, total=False):
    """Options for running an operation; `writer_batch_size` is accepted for DataDreamer scripts."""

    writer_batch_size: int | None


class OperationOptions(RunOptions, total=False):
    """Options that every operation takes: those of `RunOptions` and a name.

    Attributes:
        name: Name of the new step; by default this step's name with the operation in parentheses.
    """

    name: str | None


class ExportOptions(TypedDict, total=False):
    """Options that every export takes.

    Attributes:
        train_size: Export this share (float) or number (int) of the rows as a split `train`.
        validation_size: The same for the split `validation`.
        test_size: The same for the split `test`.
        stratify_by_column: A column whose values have the same shares in every split.
        writer_batch_size: Accepted for DataDreamer scripts, as `save_num_proc` and `save_num_shards`.
    """

    train_size: float | None
    validation_size: float | None
    test_size: float | None
    stratify_by_column: str | None
    writer_batch_size: int | None
    save_num_proc: int | None
    save_num_shards: int | None


def taken_options(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Removes the options of some names from others, and returns them."""
    return {name: options.pop(name) for name in names if name in options}


def check_known(options: Iterable[str], known: Collection[str], what: str) -> None:
    """Raises a `DefinitionError` if an option is unknown."""
    for name in options:
        if name not in known:
            raise DefinitionError(
                f'{what} has no option "{name}"; it takes: {", ".join(known)}.{did_you_mean(name, known)}'
            )
