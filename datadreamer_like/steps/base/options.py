"""Options that many calls of a step take, each family typed once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypedDict

from datadreamer_like.errors import DefinitionError, did_you_mean
from datadreamer_like.graph.positions import by_position


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
    """Options of every operation; the new step's `name` is by default this one's, with the operation in parentheses."""

    name: str | None


class ExportOptions(TypedDict, total=False):
    """Options that every export takes.

    `train_size`, `validation_size` and `test_size` export a share (float) or number (int) of the rows as a split; the
    values of `stratify_by_column` have the same shares in every split. The other options are accepted for DataDreamer
    scripts.
    """

    train_size: float | None
    validation_size: float | None
    test_size: float | None
    stratify_by_column: str | None
    writer_batch_size: int | None
    save_num_proc: int | None
    save_num_shards: int | None


_SAVING: dict[str, Any] = {"save_num_proc": None, "save_num_shards": None}
_NODE: dict[str, Any] = {"progress_interval": 60, "force": False}
_RUN: dict[str, Any] = {**_NODE, "writer_batch_size": 1000, **_SAVING, "background": False}
_EXPORT: dict[str, Any] = {**dict.fromkeys(ExportOptions.__annotations__), "writer_batch_size": 1000}

# The options of each kind of call, by position too: in DataDreamer's order, with their defaults.
takes_node_options = by_position({**_NODE, "verbose": None, "log_level": None, **_SAVING, "background": False})
takes_copy_options = by_position(_RUN, further=False)
takes_saved_options = by_position({"name": None, **_RUN}, further=False)
takes_lazy_options = by_position({"name": None, "lazy": True, **_RUN}, further=False)
takes_export_options = by_position(_EXPORT, further=False)
takes_file_options = by_position(_EXPORT)
takes_publish_options = by_position({**_EXPORT, "is_synthetic": None})


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
