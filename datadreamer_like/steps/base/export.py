"""Exporting a step's rows to Python, to files and to the Hugging Face Hub."""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.rows import Rows
from datadreamer_like.storage.folders import explained
from datadreamer_like.storage.tables import as_dataset
from datadreamer_like.storage.values import class_names, to_columns

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


class Exports(DatasetNode):
    """The exports of a step. With split sizes, each makes one result per split."""

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

        With splits, `data.json` becomes `data.train.json` and so on, and the paths are returned by split. Other options
        than `ExportOptions`: `lines=False` writes one list; `indent` and `ensure_ascii` (or `force_ascii`; True) are
        those of `json.dumps`; `orient` can only be "records".
        """
        return self._files(path, options, _write_json)

    @takes_file_options
    def export_to_csv(self, path: str | os.PathLike[str], sep: str = ",", **options: Any) -> Any:
        """Writes CSV with a header, and returns the path; lists and dictionaries become JSON.

        With splits, `data.csv` becomes `data.train.csv` and so on, and the paths are returned by split. Options not
        in `ExportOptions` go to `pandas.DataFrame.to_csv`.
        """
        return self._files(path, options, lambda rows, file, rest: _write_csv(rows, file, {"sep": sep, **rest}))

    @takes_export_options
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

        return publish_dataset(
            self._dataset(options), repo_id, card=self.card, branch=branch, private=private, token=token,
            is_synthetic=is_synthetic,
        )  # fmt: skip

    def _parts(self, options: Any) -> dict[str, Rows]:
        """Returns the rows of each split, or all of them under an empty name."""
        check_known(options, ExportOptions.__annotations__, "an export")
        sizes = {split: options.get(f"{split}_size") for split in ("train", "validation", "test")}
        rows = self.output.rows
        if all(size is None for size in sizes.values()):
            return {"": rows}
        by = options.get("stratify_by_column")
        return {split: splitting.split_rows(rows, sizes, split, by) for split in splitting.split_names(sizes)}

    def _dataset(self, options: Any) -> Dataset | DatasetDict:
        from datasets import DatasetDict

        parts = {split: _dataset_of(rows) for split, rows in self._parts(options).items()}
        return parts[""] if "" in parts else DatasetDict(parts)

    def _files(self, path: str | os.PathLike[str], options: dict[str, Any], write: Any) -> Any:
        target = Path(path)
        files = {}
        for split, rows in self._parts(taken_options(options, ExportOptions.__annotations__)).items():
            file = target.with_name(f"{target.stem}.{split}{target.suffix}") if split else target
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
            try:
                with explained(f'Exporting "{self.name}"', file):
                    try:
                        write(rows, str(draft), dict(options))
                        os.replace(draft, file)
                    except OSError as error:
                        error.filename = str(file)
                        raise
            finally:
                draft.unlink(missing_ok=True)
            files[split] = str(file)
        return files.get("", files)


def _columns(rows: Rows) -> dict[str, list[Any]]:
    batches = list(rows.batches())
    return {name: [value for batch in batches for value in batch[name]] for name in rows.columns}


def _rows(rows: Rows) -> list[dict[str, Any]]:
    return [dict(zip(batch, row, strict=True)) for batch in rows.batches() for row in zip(*batch.values(), strict=True)]


def _dataset_of(rows: Rows) -> Dataset:
    table = transforms.table_of(rows)
    return as_dataset(table.data, table.indices, uuid.uuid4().hex)


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
                key, names = dumps(field.name), class_names(field, in_lists=True)
                try:
                    texts.append([f"{key}: {dumps(_named(value, names) if names else value)}" for value in values])
                except (TypeError, ValueError) as error:
                    raise DefinitionError(
                        f'export_to_json: column "{field.name}" holds what JSON cannot: {error}. Convert it with '
                        "step.map, or use export_to_hf_dataset."
                    ) from error
            yield from (f"{{{', '.join(row)}}}" for row in zip(*texts, strict=True))


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return None if value is None or value < 0 else names[value]


def _text(value: Any) -> str:
    if not isinstance(value, date | time | timedelta | Decimal):
        raise TypeError(f"a value of type {type(value).__name__}")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _write_csv(rows: Rows, file: str, options: dict[str, Any]) -> None:
    import pandas as pd

    empty = pd.DataFrame(columns=rows.columns)
    header = options.pop("header", True)
    with open(file, "w", encoding=options.pop("encoding", "utf-8"), newline="") as stream:
        for frame in itertools.chain([empty], map(_frame, rows.read())):
            try:
                frame.to_csv(stream, **{"index": False, **options}, header=header if frame is empty else False)
            except TypeError as error:
                raise DefinitionError(f"export_to_csv: pandas refuses the options {list(options)}: {error}") from error


def _frame(batch: pa.RecordBatch) -> pd.DataFrame:
    import pandas as pd

    columns = {}
    for field, values in zip(batch.schema, to_columns(batch).values(), strict=True):
        names = class_names(field, in_lists=True)
        columns[field.name] = [_plain(_named(value, names) if names else value) for value in values]
    return pd.DataFrame(columns, dtype=object)


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else value
