"""Exporting a step's rows to Python, to files and to the Hugging Face Hub."""

from __future__ import annotations

import itertools
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.rows import Rows
from datadreamer_like.storage.folders import explained
from datadreamer_like.storage.tables import as_dataset

from ..operations import splitting, transforms
from .dataset_node import DatasetNode

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class ExportOptions(TypedDict, total=False):
    """Options that every export takes.

    Attributes:
        train_size: Export this share (float) or number (int) of the rows as a split `train`.
        validation_size: The same for the split `validation`.
        test_size: The same for the split `test`.
        stratify_by_column: A column whose values have the same shares in every split.
        writer_batch_size: Accepted for DataDreamer scripts.
        save_num_proc: Accepted for DataDreamer scripts.
        save_num_shards: Accepted for DataDreamer scripts.
    """

    train_size: float | None
    validation_size: float | None
    test_size: float | None
    stratify_by_column: str | None
    writer_batch_size: int | None
    save_num_proc: int | None
    save_num_shards: int | None


_SIZES = ("train_size", "validation_size", "test_size")


class Exports(DatasetNode):
    """The exports of a step. With split sizes, each makes one result per split."""

    def export_to_dict(self, **options: Unpack[ExportOptions]) -> dict[str, Any]:
        """Returns the columns as lists; with splits, one such dictionary per split."""
        parts = self._parts(options)
        made = {split: _columns(rows) for split, rows in parts.items()}
        return made.get("", made)

    def export_to_list(self, **options: Unpack[ExportOptions]) -> Any:
        """Returns the rows as dictionaries; with splits, one such list per split."""
        parts = self._parts(options)
        made = {split: _rows(rows) for split, rows in parts.items()}
        return made.get("", made)

    def export_to_json(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Writes JSON lines.

        Args:
            path: The file; with splits, `data.json` becomes `data.train.json` and so on.
            **options: See `ExportOptions`; others go to `datasets.Dataset.to_json`.

        Returns:
            The path; with splits, paths by split.
        """
        return self._files(path, options, lambda rows, file, rest: _dataset_of(rows).to_json(file, **rest))

    def export_to_csv(self, path: str | os.PathLike[str], sep: str = ",", **options: Any) -> Any:
        """Writes CSV with a header; lists and dictionaries become JSON.

        Args:
            path: The file; with splits, `data.csv` becomes `data.train.csv` and so on.
            sep: Separator.
            **options: See `ExportOptions`; others go to `pandas.DataFrame.to_csv`.

        Returns:
            The path; with splits, paths by split.
        """
        return self._files(path, options, lambda rows, file, rest: _write_csv(rows, file, {"sep": sep, **rest}))

    def export_to_hf_dataset(
        self, path: str | os.PathLike[str], **options: Unpack[ExportOptions]
    ) -> Dataset | DatasetDict:
        """Writes a folder that `datasets.load_from_disk` opens, and returns the dataset opened from it."""
        from datasets import load_from_disk

        dataset = self._dataset(options)
        with explained(f'Exporting "{self.name}"', Path(path)):
            dataset.save_to_disk(
                os.fspath(path), num_shards=None if isinstance(dataset, dict) else options.get("save_num_shards")
            )
        return cast("Dataset | DatasetDict", load_from_disk(os.fspath(path)))

    def publish_to_hf_hub(
        self,
        repo_id: str,
        branch: str | None = None,
        private: bool = False,
        token: str | None = None,
        is_synthetic: bool | None = None,
        **options: Any,
    ) -> str:
        """Publishes the rows with a card on the Hugging Face Hub; unchanged files make no commit.

        Args:
            repo_id: `user/name`, or `name` in the token's own namespace.
            branch: Branch to publish to; created if it does not exist.
            private: Make a new repository private.
            token: Access token; by default that of `hf auth login` or `HF_TOKEN`.
            is_synthetic: Tag the dataset as synthetic; None decides by the origin of the rows.
            **options: See `ExportOptions`.

        Returns:
            The URL of the dataset.

        Raises:
            HubError: The token or the name is invalid, or the Hub is unavailable; raised before anything is sent.
        """
        from datadreamer_like.hub import publish_dataset

        known = _checked(options)
        return publish_dataset(
            self._dataset(known), repo_id, card=self.card, branch=branch, private=private, token=token,
            is_synthetic=is_synthetic,
        )  # fmt: skip

    def _parts(self, options: Any) -> dict[str, Rows]:
        known = _checked(options)
        sizes = {name.removesuffix("_size"): known.get(name) for name in _SIZES}
        rows = self.output.rows
        if all(size is None for size in sizes.values()):
            return {"": rows}
        by = known.get("stratify_by_column")
        return {split: splitting.Split(sizes, split, by)(rows) for split in splitting.split_names(sizes)}

    def _dataset(self, options: Any) -> Dataset | DatasetDict:
        from datasets import DatasetDict

        parts = {split: _dataset_of(rows) for split, rows in self._parts(options).items()}
        return parts[""] if "" in parts else DatasetDict(parts)

    def _files(self, path: str | os.PathLike[str], options: dict[str, Any], write: Any) -> Any:
        known = {name: options.pop(name) for name in list(options) if name in ExportOptions.__annotations__}
        target = Path(path)
        files = {}
        for split, rows in self._parts(known).items():
            file = target.with_name(f"{target.stem}.{split}{target.suffix}") if split else target
            file.parent.mkdir(parents=True, exist_ok=True)
            with explained(f'Exporting "{self.name}"', file):
                write(rows, str(file), options)
            files[split] = str(file)
        return files.get("", files)


def _columns(rows: Rows) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in rows.columns}
    for batch in rows.batches():
        for name, values in batch.items():
            columns[name].extend(values)
    return columns


def _rows(rows: Rows) -> list[dict[str, Any]]:
    return [dict(zip(batch, row, strict=True)) for batch in rows.batches() for row in zip(*batch.values(), strict=True)]


def _dataset_of(rows: Rows) -> Dataset:
    table = transforms.materialized(rows).table
    assert table is not None
    return as_dataset(table.data, table.indices, uuid.uuid4().hex)


def _write_csv(rows: Rows, file: str, options: dict[str, Any]) -> None:
    import pandas as pd

    with open(file, "w", encoding=options.pop("encoding", "utf-8"), newline="") as stream:
        header = True
        for columns in itertools.chain(rows.batches(), [{name: [] for name in rows.columns}]):
            if not header and not next(iter(columns.values()), ()):
                return
            nested = {
                name: [_json(value) if isinstance(value, dict | list) else value for value in values]
                for name, values in columns.items()
            }
            frame = pd.DataFrame(nested, dtype=object)
            try:
                frame.to_csv(stream, **{"index": False, "header": header, **options})
            except TypeError as error:
                raise DefinitionError(f"export_to_csv: pandas refuses the options {list(options)}: {error}") from error
            header = False


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in ExportOptions.__annotations__:
            raise DefinitionError(
                f"{name!r} is not an export option; the options are: {', '.join(ExportOptions.__annotations__)}."
            )
    return options
