"""Exporting a step's rows to Python, to files and to the Hugging Face Hub."""

from __future__ import annotations

import csv
import itertools
import json
import os
import uuid
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Unpack

from datadreamer_like.errors import DefinitionError, SessionError
from datadreamer_like.graph.lazy_table import materialized
from datadreamer_like.graph.rows import Rows
from datadreamer_like.storage.arrow_types import holds_empty_objects
from datadreamer_like.storage.exports import local_path, new_export, new_file
from datadreamer_like.storage.tables import as_dataset, opened_dataset, save_schema
from datadreamer_like.storage.values import named_labels, pickled_columns, to_columns

from ..operations import splitting, transforms
from .dataset_node import DatasetNode
from .options import (
    ExportOptions,
    check_known,
    taken_options,
    takes_export_options,
    takes_file_options,
    takes_publish_options,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

# As in DataDreamer.
_IN_FILE_NAMES = {"train": "train", "validation": "val", "test": "test"}


class Exports(DatasetNode):
    """The exports of a step. With sizes of two or more splits, each makes one result per split."""

    @takes_export_options
    def export_to_dict(self, **options: Unpack[ExportOptions]) -> dict[str, Any]:
        """Returns the columns as lists; with splits, one such dictionary per split."""
        made = {split: _columns(rows) for split, rows in self._parts(options).items()}
        return made.get("", made)

    @takes_export_options
    def export_to_list(self, **options: Unpack[ExportOptions]) -> Any:
        """Returns the rows as dictionaries; with splits, one such list per split."""
        made = {split: _rows(rows) for split, rows in self._parts(options).items()}
        return made.get("", made)

    @takes_file_options
    def export_to_json(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Writes JSON lines, and returns the path; dates and times become ISO texts, class labels their names.

        With splits, `data.json` becomes `data.train.json`, `data.val.json` and `data.test.json`, and the paths are
        returned by split. Other options than `ExportOptions`: `lines=False` writes one list; `indent` and
        `ensure_ascii` (or `force_ascii`; True) are those of `json.dumps`; `orient` can only be "records".
        """
        return self._files(path, options, _write_json)

    @takes_file_options
    def export_to_csv(self, path: str | os.PathLike[str], sep: str = ",", **options: Any) -> Any:
        """Writes CSV with a header, and returns the path; lists and dictionaries become JSON.

        CSV has no types: texts such as "12" or "+49" are numbers when it is read. Read it with
        `CSVDataSource(..., dtype={"phone": str})`, or export to JSON, which keeps them.

        With splits, `data.csv` becomes `data.train.csv`, `data.val.csv` and `data.test.csv`, and the paths are returned
        by split. Options not in `ExportOptions` go to `pandas.DataFrame.to_csv`.
        """
        return self._files(path, options, lambda rows, file, rest: _write_csv(rows, file, {"sep": sep, **rest}))

    @takes_export_options
    def export_to_hf_dataset(
        self, path: str | os.PathLike[str], **options: Unpack[ExportOptions]
    ) -> Dataset | DatasetDict:
        """Writes a folder that `datasets.load_from_disk` opens, and returns the dataset opened from it.

        In a `Dataset`, keys that nested rows did not have are None. The folder keeps the difference: read it again with
        `HFDatasetDataSource(path)` rather than with `DataSource(data=dataset)`.
        """
        dataset, schema = self._dataset(options)
        shards = None if isinstance(dataset, dict) else options.get("save_num_shards")
        with new_export(path, f'Exporting "{self.name}"', ("state.json", "dataset_dict.json")) as draft:
            dataset.save_to_disk(draft, num_shards=shards)
            for folder in [draft / split for split in dataset] if isinstance(dataset, dict) else [draft]:
                save_schema(folder, schema)
        return opened_dataset(path, pickled_columns(schema))

    @takes_publish_options
    def publish_to_hf_hub(
        self,
        repo_id: str,
        branch: str | None = None,
        private: bool = False,
        token: str | None = None,
        *,
        is_synthetic: bool | None = None,
        **options: Any,
    ) -> str:
        """Publishes the rows with a card on the Hugging Face Hub, and returns the URL; unchanged files make no commit.

        The arguments and errors are those of `datadreamer_like.hub.publish_dataset`, the options those of
        `ExportOptions`.
        """
        from datadreamer_like.hub import publish_dataset

        if self.preview_rows is not None:
            raise SessionError(
                f'Publishing {repo_id}: "{self.name}" is a preview of {self.preview_rows} rows. Make the step without '
                "preview."
            )
        dataset, schema = self._dataset(options)
        for field in schema:
            if holds_empty_objects(field.type):
                raise DefinitionError(
                    f'Publishing "{self.name}": column "{field.name}" holds dictionaries without any key, which '
                    "Parquet cannot store. Remove the column, or convert its values to None or to texts, with step.map."
                )
        return publish_dataset(
            dataset, repo_id, card=self.card, branch=branch, private=private, token=token,
            is_synthetic=is_synthetic,
        )  # fmt: skip

    def _parts(self, options: Any) -> dict[str, Rows]:
        """Returns the rows of each split, or all of them under an empty name."""
        check_known(options, ExportOptions.__annotations__, "an export")
        sizes = {split: options.get(f"{split}_size") for split in ("train", "validation", "test")}
        rows = self.output.rows
        if not any(sizes.values()):
            splitting.split_names(sizes)
            return {"": rows}
        by = options.get("stratify_by_column")
        rows = materialized(rows)  # lazy rows are generated once for all splits
        names = splitting.split_names(sizes, rows.num_rows)
        parts = {split: splitting.split_rows(rows, sizes, split, by) for split in names}
        return parts if len(parts) > 1 else {"": next(iter(parts.values()))}

    def _dataset(self, options: Any) -> tuple[Dataset | DatasetDict, pa.Schema]:
        """Returns the rows, by split if there are several, and their schema."""
        from datasets import DatasetDict

        tables = {split: transforms.table_of(rows) for split, rows in self._parts(options).items()}
        made = {split: as_dataset(part.data, part.indices, uuid.uuid4().hex) for split, part in tables.items()}
        schema = next(iter(tables.values())).data.schema
        return (made[""] if "" in made else DatasetDict(made)), schema

    def _files(self, path: str | os.PathLike[str], options: dict[str, Any], write: Any) -> Any:
        target = local_path(path, f'Exporting "{self.name}"')
        files = {}
        for split, rows in self._parts(taken_options(options, ExportOptions.__annotations__)).items():
            file = target.with_name(f"{target.stem}.{_IN_FILE_NAMES[split]}{target.suffix}") if split else target
            with new_file(file, f'Exporting "{self.name}"') as draft:
                write(rows, str(draft), dict(options))
            files[split] = str(file)
        return files.get("", files)


def _columns(rows: Rows) -> dict[str, list[Any]]:
    batches = list(rows.batches())
    return {name: [value for batch in batches for value in batch[name]] for name in rows.columns}


def _rows(rows: Rows) -> list[dict[str, Any]]:
    return [dict(zip(batch, row, strict=True)) for batch in rows.batches() for row in zip(*batch.values(), strict=True)]


def _write_json(rows: Rows, file: str, options: dict[str, Any]) -> None:
    check_known(options, ("lines", "orient", "indent", "ensure_ascii", "force_ascii"), "export_to_json")
    if options.get("orient", "records") != "records":
        raise DefinitionError(f'export_to_json: orient is {options["orient"]!r}; it can only be "records".')
    ascii_only, indent = options.get("ensure_ascii", options.get("force_ascii", True)), options.get("indent")
    dumps = partial(json.dumps, ensure_ascii=ascii_only, allow_nan=False, default=_text)
    texts = (text if indent is None else dumps(json.loads(text), indent=indent) for text in _json_rows(rows, dumps))
    with open(file, "w", encoding="utf-8") as stream:
        if options.get("lines", True):
            stream.writelines(f"{text}\n" for text in texts)
        else:
            stream.write("[\n" + ",\n".join(texts) + "\n]\n")


def _json_rows(rows: Rows, dumps: Any) -> Iterator[str]:
    for batch in rows.read():
        for start in range(0, batch.num_rows, 1_000):
            texts = []
            for field, values in zip(batch.schema, to_columns(batch.slice(start, 1_000)).values(), strict=True):
                key, named = dumps(field.name), named_labels(field)
                try:
                    texts.append([f"{key}: {dumps(named(value) if named else value)}" for value in values])
                except (TypeError, ValueError) as error:
                    raise DefinitionError(
                        f'export_to_json: column "{field.name}" holds what JSON cannot: {error}. Convert it with '
                        "step.map, or use export_to_hf_dataset."
                    ) from error
            yield from (f"{{{', '.join(row)}}}" for row in zip(*texts, strict=True))


def _text(value: Any) -> str:
    if not isinstance(value, date | time | timedelta | Decimal):
        raise TypeError(f"a value of type {type(value).__name__}")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _write_csv(rows: Rows, file: str, options: dict[str, Any]) -> None:
    import pandas as pd

    empty = pd.DataFrame(columns=rows.columns)
    header = options.pop("header", True)
    end = options.pop("lineterminator", os.linesep)
    with open(file, "w", encoding=options.pop("encoding", "utf-8"), newline="") as stream:
        lines = _Lines(stream, end)
        for frame in itertools.chain([empty], map(_frame, rows.read())):
            shown = header if frame is empty else False
            try:
                frame.to_csv(lines, **{"index": False, **options}, header=shown, lineterminator=_Lines.end)
            except (TypeError, ValueError, csv.Error) as error:
                raise DefinitionError(f"export_to_csv: pandas refuses the options {list(options)}: {error}") from error


class _Lines:
    """A stream of CSV rows: written with an end that makes all versions of Python quote fields with line ends."""

    end = "\r\n"

    def __init__(self, stream: IO[str], end: str) -> None:
        self._stream = stream
        self._end = end

    def write(self, row: str) -> int:
        return self._stream.write(row.removesuffix(self.end) + self._end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _frame(batch: pa.RecordBatch) -> pd.DataFrame:
    import pandas as pd

    columns = {}
    for field, values in zip(batch.schema, to_columns(batch).values(), strict=True):
        named = named_labels(field)
        try:
            columns[field.name] = [_plain(named(value) if named else value) for value in values]
        except TypeError as error:
            raise DefinitionError(
                f'export_to_csv: column "{field.name}" holds what CSV cannot: {error}. Convert it with step.map, or '
                "use export_to_hf_dataset."
            ) from error
    return pd.DataFrame(columns, dtype=object)


def _plain(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=_text)
    if not isinstance(value, str | int | float | None):
        _text(value)
    return value
