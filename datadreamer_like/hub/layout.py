"""The layout of a dataset repository: configuration, splits, Parquet shards, and their metadata in the card.

Equal rows give equal bytes, independent of their memory layout, so that unchanged shards are detected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.features.features import require_storage_embed
from datasets.info import DatasetInfosDict
from datasets.table import embed_table_storage
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from datadreamer_like.errors import ArgumentTypeError, EmptyDataset, HubError
from datadreamer_like.storage.schemas import with_schema

from .card import table

DEFAULT_CONFIG = "default"

# The Hub's viewer and streaming readers read whole row groups: some MB are a good size.
ROW_GROUP_BYTES = 16 * 1024 * 1024
MOST_ROWS_A_GROUP = 2**16
SAMPLES = 16
SAMPLE_ROWS = 8
# With content-defined chunks the Hub stores only the changed parts of a dataset.
WRITER_OPTIONS: dict[str, Any] = {"compression": "snappy", "write_page_index": True} | (
    {"use_content_defined_chunking": True} if int(pa.__version__.split(".")[0]) >= 21 else {}
)


@dataclass
class Layout:
    """The splits of a configuration, all with the same features, in their repository.

    Writing shards completes it: `num_bytes` are the Arrow bytes of each split, `download_size` the bytes of all shards,
    and `paths` their paths in the repository.
    """

    splits: dict[str, datasets.Dataset]
    config: str
    num_bytes: dict[str, int] = field(default_factory=dict)
    download_size: int = 0
    paths: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: datasets.Dataset | datasets.DatasetDict, config_name: str | None) -> Layout:
        """Checks that a dataset can be published, with the errors of `publish_dataset`, and returns its layout."""
        splits = {str(name): rows for name, rows in data.items()} if isinstance(data, dict) else {"train": data}
        if not splits:
            raise EmptyDataset("There are no splits to publish. Check the step that made the dataset.")
        config = config_name or DEFAULT_CONFIG
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", config) or config == "data":
            raise HubError(f'"{config}" cannot name a configuration. Use letters, digits, "-", "_" and ".".')
        first_name, first = next(iter(splits.items()))
        for name, rows in splits.items():
            if not isinstance(rows, datasets.Dataset):
                raise ArgumentTypeError(
                    f"{type(rows).__name__} cannot be published. Give a Dataset or a DatasetDict; "
                    "save lazy rows to disk first."
                )
            if not re.fullmatch(r"\w+(\.\w+)*", name):
                raise HubError(f'"{name}" cannot name a split. Use letters, digits, "_" and ".", such as "train".')
            if rows.features != first.features:
                raise HubError(
                    f'The splits differ in their columns: "{first_name}" has {first.features}, "{name}" has '
                    f"{rows.features}. Give all splits the same columns, or publish them under different config_name."
                )
            if not len(rows):
                raise EmptyDataset(
                    f'The split "{name}" has no rows, and `load_dataset` fails on such a dataset. '
                    "Leave the split out, or check the step that made it."
                )
        return cls(splits, config)

    @property
    def features(self) -> datasets.Features:
        """The columns of every split."""
        return next(iter(self.splits.values())).features

    @property
    def data_dir(self) -> str:
        """Folder of the shards in the repository."""
        return "data" if self.config == DEFAULT_CONFIG else self.config

    def write_shards(self, folder: Path, max_shard_size: int) -> Iterator[tuple[str, Path]]:
        """Writes shards of about `max_shard_size` bytes, and yields the path in the repository and the file of each.

        The caller may delete a file before the next one is written. Only one row group is in memory at a time.
        """
        for split, data in self.splits.items():
            # Powers of two, so that small changes of the row size do not move every boundary.
            row_bytes = _row_bytes(data)
            group_rows = min(MOST_ROWS_A_GROUP, _power_of_two(min(ROW_GROUP_BYTES, max_shard_size) / row_bytes))
            shard_rows = group_rows * _power_of_two(max_shard_size / (row_bytes * group_rows))
            count = math.ceil(len(data) / shard_rows)
            self.num_bytes[split] = 0
            for index in range(count):
                name = f"{split}-{index:05d}-of-{count:05d}.parquet"
                path, file = f"{self.data_dir}/{name}", folder / name
                start = index * shard_rows
                self.num_bytes[split] += _write(data, start, min(len(data), start + shard_rows), group_rows, file)
                self.download_size += file.stat().st_size
                self.paths.add(path)
                yield path, file

    def metadata(self) -> dict[str, Any]:
        """Returns the card's keys for splits and features."""
        splits = [
            datasets.SplitInfo(name, self.num_bytes.get(name, 0), len(rows)) for name, rows in self.splits.items()
        ]
        info = datasets.DatasetInfo(
            features=self.features,
            splits=datasets.splits.SplitDict({split.name: split for split in splits}),
            download_size=self.download_size,
            dataset_size=sum(self.num_bytes.values()),
        )
        files = [{"split": name, "path": f"{self.data_dir}/{name}-*"} for name in self.splits]
        data = DatasetCardData()
        DatasetInfosDict({self.config: info}).to_dataset_card_data(data)
        MetadataConfigs({self.config: {"data_files": files}}).to_dataset_card_data(data)
        return {"dataset_info": data["dataset_info"], "configs": data["configs"]}

    def description(self) -> str:
        """Returns the card's tables of splits and columns."""
        splits = table(("split", "rows"), [(name, f"{len(rows):,}") for name, rows in self.splits.items()])
        columns = table(("column", "type"), [(name, _type(feature)) for name, feature in self.features.items()])
        return f"{splits}\n\n{columns}"

    def is_stale(self, path: str) -> bool:
        """Returns whether a path is a shard of an earlier version that this one does not have."""
        shard = rf"{re.escape(self.data_dir)}/[^/]+-\d{{5}}-of-\d{{5}}(-[0-9a-f]+)?\.parquet"
        return path not in self.paths and re.fullmatch(shard, path) is not None


def _write(data: datasets.Dataset, start: int, stop: int, group_rows: int, file: Path) -> int:
    """Writes a range of rows, and returns their Arrow bytes."""
    num_bytes = 0
    with pq.ParquetWriter(file, data.features.arrow_schema, **WRITER_OPTIONS) as writer:
        for first in range(start, stop, group_rows):
            group = _rows(data, first, min(stop, first + group_rows))
            num_bytes += group.nbytes
            writer.write_table(group, row_group_size=group_rows)
    return num_bytes


def _rows(data: datasets.Dataset, start: int, stop: int) -> pa.Table:
    """Reads rows into one chunk, with the embedded content of images and audio."""
    rows = data.with_format("arrow")[start:stop]
    if any(require_storage_embed(feature) for feature in data.features.values()):
        rows = embed_table_storage(rows)
    schema = data.features.arrow_schema
    if any("null" in str(field.type) for field in schema):
        return with_schema(rows, schema).combine_chunks()
    return rows.cast(schema).combine_chunks()  # a cast lays values out in one way, but damages lists of nulls


def _row_bytes(data: datasets.Dataset) -> float:
    """Returns the mean bytes per row, sampled evenly over the dataset."""
    step = max(1, len(data) // SAMPLES)
    samples = [_rows(data, start, min(len(data), start + SAMPLE_ROWS)) for start in range(0, len(data), step)]
    mean: float = sum(sample.nbytes for sample in samples) / sum(sample.num_rows for sample in samples)
    return max(1.0, mean)


def _power_of_two(number: float) -> int:
    """Returns the largest power of two up to a number, at least 1."""
    return int(2 ** max(0, math.floor(math.log2(max(1.0, number)))))


def _type(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"label: {', '.join(feature.names)}"
    return str(feature.dtype if isinstance(feature, datasets.Value) else feature)
