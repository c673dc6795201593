"""Operations on a step's rows: each returns a new step, by default with lazily generated rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, Unpack

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.lazy_table import materialized
from datadreamer_like.graph.row_numbers import row_numbers, whole_number
from datadreamer_like.graph.rows import Rows

from ..base.dataset_node import DatasetNode
from ..base.options import (
    OperationOptions,
    RunOptions,
    check_known,
    takes_copy_options,
    takes_lazy_options,
    takes_saved_options,
)
from . import row_functions, splitting, transforms
from .sorting import sort

StepT = TypeVar("StepT", bound=DatasetNode)


class Operations(DatasetNode, Generic[StepT]):
    """The operations of a step. Selecting or reordering rows of a saved step makes a view of its table."""

    @takes_lazy_options
    def select(self, indices: Iterable[int], *, lazy: bool = True, **options: Unpack[OperationOptions]) -> StepT:
        """Selects rows by position, in the given order; lazy rows are read and saved, so the result has positions."""
        chosen = row_numbers(indices, "select: indices")
        has_positions = self.output.rows.table is not None
        return self.derive("select", lazy and has_positions, options, transforms.select, indices=chosen)

    @takes_lazy_options
    def select_columns(
        self, column_names: str | list[str], *, lazy: bool = True, **options: Unpack[OperationOptions]
    ) -> StepT:
        """Keeps only the named columns."""
        names = self._known(column_names)
        if len(set(names)) < len(names):
            raise DefinitionError(f"select_columns: a column is named twice: {', '.join(names)}.")
        return self.derive("select_columns", lazy, options, transforms.keep_columns, column_names=names)

    @takes_lazy_options
    def take(self, n: int, *, lazy: bool = True, **options: Unpack[OperationOptions]) -> StepT:
        """Takes the first `n` rows."""
        return self.derive("take", lazy, options, transforms.span, start=0, stop=whole_number(n, "take: n"))

    @takes_lazy_options
    def skip(self, n: int, *, lazy: bool = True, **options: Unpack[OperationOptions]) -> StepT:
        """Skips the first `n` rows."""
        return self.derive("skip", lazy, options, transforms.span, start=whole_number(n, "skip: n"), stop=None)

    @takes_lazy_options
    def shuffle(
        self,
        seed: int | None = None,
        buffer_size: int = 1000,
        *,
        lazy: bool = True,
        **options: Unpack[OperationOptions],
    ) -> StepT:
        """Puts the rows in random order; without a `seed` it is the same in every run of the script.

        A table is shuffled as a whole, lazy rows in a buffer of `buffer_size` rows.
        """
        if seed is not None and whole_number(seed, "shuffle: seed") < 0:
            raise DefinitionError(f"shuffle: seed is {seed}; expected 0 or more.")
        if whole_number(buffer_size, "shuffle: buffer_size") < 1:
            raise DefinitionError(f"shuffle: buffer_size is {buffer_size}; expected 1 or more.")
        return self.derive("shuffle", lazy, options, transforms.shuffle, seed=seed, buffer_size=buffer_size)

    @takes_saved_options
    def sort(
        self,
        column_names: str | Sequence[str],
        reverse: bool | Sequence[bool] = False,
        null_placement: str = "at_end",
        **options: Unpack[OperationOptions],
    ) -> StepT:
        """Sorts the rows by one or more columns, the most important first; equal rows keep their order.

        `reverse` puts the largest first, for all columns or per column. `null_placement` is `"at_end"` or `"at_start"`.
        """
        names = self._known(column_names)
        if not names:
            raise DefinitionError("sort needs at least one column to sort by.")
        backwards = [reverse] * len(names) if isinstance(reverse, bool) else list(reverse)
        if len(backwards) != len(names):
            raise DefinitionError(f"sort: {len(backwards)} values of reverse for {len(names)} columns.")
        args = {"column_names": names, "reverse": backwards, "null_placement": null_placement}
        return self.derive("sort", False, options, sort, **args)

    @takes_lazy_options
    def add_item(self, item: dict[str, Any], *, lazy: bool = True, **options: Unpack[OperationOptions]) -> StepT:
        """Appends a row; missing columns are None."""
        self._known(list(item))
        return self.derive("add_item", lazy, options, transforms.append, item=item)

    @takes_lazy_options
    def map(
        self,
        function: Callable[..., Any],
        with_indices: bool = False,
        input_columns: str | list[str] | None = None,
        batched: bool = False,
        batch_size: int = 1000,
        remove_columns: str | list[str] | None = None,
        total_num_rows: int | None = None,
        auto_progress: bool = True,
        *,
        lazy: bool = True,
        **options: Unpack[OperationOptions],
    ) -> StepT:
        """Applies a function to every row and adds the columns it returns.

        Args:
            function: Gets a row as a dictionary, or the values of `input_columns`; returns a dictionary of columns to
                add or replace. With `batched` it gets and returns columns as lists, and may change their length; rows
                of the same length are taken to be in the same order, as `trace` follows them.
            with_indices: Pass the row's position (or positions) as the last argument.
            input_columns: Columns whose values are passed as arguments.
            batched: Pass many rows at once.
            batch_size: Rows per call if `batched`.
            remove_columns: Columns to remove, unless the function returns them.
            total_num_rows: The number of rows, if known, where a batched function changes it.
            auto_progress: Count rows as progress.
            lazy: Generate the rows lazily.
            **options: See `OperationOptions`.
        """
        call = row_functions.Call("map", function, with_indices, self._known(input_columns), batched, batch_size)
        mapped = partial(row_functions.map_rows, total=total_num_rows, lazy=lazy)
        return self.derive("map", lazy, options, mapped, function=call, remove_columns=self._known(remove_columns))

    @takes_lazy_options
    def filter(
        self,
        function: Callable[..., Any],
        with_indices: bool = False,
        input_columns: str | list[str] | None = None,
        batched: bool = False,
        batch_size: int = 1000,
        total_num_rows: int | None = None,
        auto_progress: bool = True,
        *,
        lazy: bool = True,
        **options: Unpack[OperationOptions],
    ) -> StepT:
        """Keeps the rows for which a function returns a true value; the arguments are those of `map`."""
        call = row_functions.Call("filter", function, with_indices, self._known(input_columns), batched, batch_size)
        filtered = partial(row_functions.filter_rows, total=total_num_rows)
        return self.derive("filter", lazy, options, filtered, function=call)

    @takes_lazy_options
    def rename_column(
        self, original_column_name: str, new_column_name: str, *, lazy: bool = True, **options: Unpack[OperationOptions]
    ) -> StepT:
        """Renames a column."""
        return self._rename("rename_column", {original_column_name: new_column_name}, lazy, options)

    @takes_lazy_options
    def rename_columns(
        self, column_mapping: dict[str, str], *, lazy: bool = True, **options: Unpack[OperationOptions]
    ) -> StepT:
        """Renames columns."""
        return self._rename("rename_columns", column_mapping, lazy, options)

    def _rename(self, operation: str, names: dict[str, str], lazy: bool, options: OperationOptions) -> StepT:
        self._known(list(names))
        new = [names.get(name, name) for name in self.output.column_names]
        if len(set(new)) < len(new):
            raise DefinitionError(f"{operation}: two columns would have the same name: {', '.join(new)}.")
        return self.derive(operation, lazy, options, transforms.rename, names=names)

    @takes_lazy_options
    def remove_columns(
        self, column_names: str | list[str], *, lazy: bool = True, **options: Unpack[OperationOptions]
    ) -> StepT:
        """Removes columns."""
        removed = self._known(column_names)
        names = [name for name in self.output.column_names if name not in removed]
        return self.derive("remove_columns", lazy, options, transforms.keep_columns, column_names=names)

    @takes_saved_options
    def splits(
        self,
        train_size: float | None = None,
        validation_size: float | None = None,
        test_size: float | None = None,
        stratify_by_column: str | None = None,
        *,
        group_by: str | DatasetNode | None = None,
        **options: Unpack[OperationOptions],
    ) -> dict[str, StepT]:
        """Splits the rows at random, the same way in every run; within a split they keep their order.

        A size is a share (a float up to 1.0) or a number (an int) of rows: 1 is one row, 1.0 all of them. Of numbers, a
        preview of fewer rows keeps the shares. The values of `stratify_by_column` have the same shares in every split.

        With `group_by`, rows of one group are in one split, and sizes are met as closely as whole groups allow. It is a
        column, or a step that the rows were made from: then all rows grown from one of its rows, as `trace` shows it,
        are a group, and rows with several such seeds join their groups.

        Returns:
            A step for each split with a size other than 0. With a single size, the remaining rows are the split `test`,
            or `train` if the size is that of `test`. Without a size, all rows are the split `train`.

        Raises:
            DefinitionError: The sizes do not fit the number of rows, there are fewer groups than splits, or which rows
                grew from one seed is unknown.
            EmptyDataset: There are no rows.
        """
        check_known(options, OperationOptions.__annotations__, "splits")
        self._known(stratify_by_column)
        sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        args: dict[str, Any] = {"sizes": sizes, "stratify_by_column": stratify_by_column}
        if group_by is not None:
            splitting.check_groups(group_by, stratify_by_column)
            self._known(group_by if isinstance(group_by, str) else None)
            args["group_by"] = group_by
        made = {}
        total, is_preview = self.output.num_rows, self.preview_rows is not None
        if total is None and (is_preview or splitting.needs_total(sizes)):
            total = materialized(self.output.rows).num_rows
        if is_preview:
            args["sizes"] = sizes = splitting.sizes_in_preview(sizes, total or 0)
        for split in splitting.split_names(sizes, total):
            name = options.get("name")
            named: OperationOptions = {**options, "name": f"{name} ({split})"} if name else options
            made[split] = self.derive(f"{split} split", False, named, splitting.split_rows, split=split, **args)
        return made

    @takes_saved_options
    def shard(
        self, num_shards: int, index: int, contiguous: bool = False, **options: Unpack[OperationOptions]
    ) -> StepT:
        """Selects one of `num_shards` parts: every `num_shards`-th row from `index`, or consecutive rows."""
        num_shards, index = whole_number(num_shards, "shard: num_shards"), whole_number(index, "shard: index")
        if num_shards < 1:
            raise DefinitionError(f"shard: num_shards is {num_shards}; expected 1 or more.")
        if not 0 <= index < num_shards:
            raise DefinitionError(f"shard: index is {index}; expected 0 to {num_shards - 1}.")
        args = {"num_shards": num_shards, "index": index, "contiguous": contiguous}
        return self.derive("shard", False, options, transforms.shard, **args)

    @takes_lazy_options
    def reverse(self, *, lazy: bool = True, **options: Unpack[OperationOptions]) -> StepT:
        """Reverses the order of the rows."""
        return self.derive("reverse", lazy, options, transforms.reverse)

    @takes_saved_options
    def save(self, **options: Unpack[OperationOptions]) -> StepT:
        """Generates all rows and saves them to disk."""
        return self.derive("save", False, options, transforms.same_rows)

    @takes_copy_options
    def copy(self, name: str | None = None, lazy: bool | None = None, **options: Unpack[RunOptions]) -> StepT:
        """Makes a step with the same rows, lazy ones by default if this step's are; `options` as in `RunOptions`."""
        keep_lazy = self.output.rows.table is None if lazy is None else lazy
        return self.derive("copy", keep_lazy, {**options, "name": name}, transforms.same_rows)

    def _known(self, names: str | Sequence[str] | None) -> list[str]:
        listed = [names] if isinstance(names, str) else list(names or ())
        for name in listed:
            _ = self.output[str(name)]  # raises if there is no such column
        return listed

    def derive(
        self, operation: str, lazy: bool, options: OperationOptions, transform: Callable[..., Rows], **args: Any
    ) -> StepT:
        """Makes the result step of an operation.

        `transform` makes its rows from this step's rows and `args`, which determine the result.
        """
        raise NotImplementedError(f"{type(self).__name__} has no operations.")
