"""Datasets as Parquet shards with the names that `datasets.load_dataset` expects.

Equal rows give equal bytes, independent of their memory layout, so that unchanged shards are detected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.features.features import require_storage_embed
from datasets.table import embed_table_storage

from .layout import Layout

# The Hub's viewer and streaming readers read whole row groups: some MB are a good size.
ROW_GROUP_BYTES = 16 * 1024 * 1024
MOST_ROWS_A_GROUP = 2**16
SAMPLES = 16
SAMPLE_ROWS = 8
# With content-defined chunks the Hub stores only the changed parts of a dataset.
WRITER_OPTIONS: dict[str, Any] = {"compression": "snappy", "write_page_index": True} | (
    {"use_content_defined_chunking": True} if int(pa.__version__.split(".")[0]) >= 21 else {}
)


def write_shards(layout: Layout, folder: Path, max_shard_size: int) -> Iterator[tuple[str, Path]]:
    """Writes a dataset as shards of about `max_shard_size` bytes, yielding each before the next is written.

    Yields the path in the repository and the file, which the caller may delete. Only one row group is in memory at a
    time.
    """
    for split, data in layout.splits.items():
        # Powers of two, so that small changes of the row size do not move every boundary.
        row_bytes = _row_bytes(data)
        group_rows = min(MOST_ROWS_A_GROUP, _power_of_two(min(ROW_GROUP_BYTES, max_shard_size) / row_bytes))
        shard_rows = group_rows * _power_of_two(max_shard_size / (row_bytes * group_rows))
        count = math.ceil(len(data) / shard_rows)
        layout.num_bytes[split] = 0
        for index in range(count):
            name = f"{split}-{index:05d}-of-{count:05d}.parquet"
            path, file = f"{layout.data_dir}/{name}", folder / name
            start = index * shard_rows
            layout.num_bytes[split] += _write(data, start, min(len(data), start + shard_rows), group_rows, file)
            layout.download_size += file.stat().st_size
            layout.paths.add(path)
            yield path, file


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
    return rows.cast(data.features.arrow_schema).combine_chunks()


def _row_bytes(data: datasets.Dataset) -> float:
    """Returns the mean bytes per row, sampled evenly over the dataset."""
    step = max(1, len(data) // SAMPLES)
    samples = [_rows(data, start, min(len(data), start + SAMPLE_ROWS)) for start in range(0, len(data), step)]
    mean: float = sum(sample.nbytes for sample in samples) / sum(sample.num_rows for sample in samples)
    return max(1.0, mean)


def _power_of_two(number: float) -> int:
    """Returns the largest power of two up to a number, at least 1."""
    return int(2 ** max(0, math.floor(math.log2(max(1.0, number)))))
