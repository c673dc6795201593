"""Datasets as Parquet shards, named as `datasets.load_dataset` looks for them.

The same rows give the same bytes, however they lie in memory: that is how a publisher knows that nothing changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.features.features import require_storage_embed
from datasets.table import embed_table_storage

from .layout import Layout

# A row group is read whole by the Hub's viewer and by streaming readers: some MB are a good size.
ROW_GROUP_BYTES = 16 * 1024 * 1024
MOST_ROWS_A_GROUP = 2**16
SAMPLES = 16
SAMPLE_ROWS = 8
# Chunking by content lets the Hub store a dataset that changed a little for the price of the change.
WRITER_OPTIONS: dict[str, Any] = {"compression": "snappy", "write_page_index": True} | (
    {"use_content_defined_chunking": True} if int(pa.__version__.split(".")[0]) >= 21 else {}
)


@dataclass(frozen=True)
class Shard:
    """One Parquet file: where it lies on this machine, and where it belongs in the repository."""

    file: Path
    path_in_repo: str


def write_shards(layout: Layout, folder: Path, max_shard_size: int) -> Iterator[Shard]:
    """Writes a dataset as shards of about `max_shard_size` bytes of rows, yielding each before the next is begun.

    Only one row group is in memory at a time, and the caller may delete a shard's file once it has it.

    Yields:
        The shards of one split after the other; one without rows for a split without rows.
    """
    for split, data in layout.splits.items():
        # Powers of two, so that a few bytes more or less a row do not move every boundary.
        row_bytes = _row_bytes(data)
        group_rows = min(MOST_ROWS_A_GROUP, _power_of_two(min(ROW_GROUP_BYTES, max_shard_size) / row_bytes))
        shard_rows = group_rows * _power_of_two(max_shard_size / (row_bytes * group_rows))
        count = max(1, math.ceil(len(data) / shard_rows))
        layout.num_bytes[split] = 0
        for index in range(count):
            name = f"{split}-{index:05d}-of-{count:05d}.parquet"
            shard = Shard(folder / name, f"{layout.data_dir}/{name}")
            start = index * shard_rows
            layout.num_bytes[split] += _write(data, start, min(len(data), start + shard_rows), group_rows, shard.file)
            layout.download_size += shard.file.stat().st_size
            layout.paths.add(shard.path_in_repo)
            yield shard


def _write(data: datasets.Dataset, start: int, stop: int, group_rows: int, file: Path) -> int:
    num_bytes = 0
    with pq.ParquetWriter(file, data.features.arrow_schema, **WRITER_OPTIONS) as writer:
        for first in range(start, stop, group_rows):
            group = _rows(data, first, min(stop, first + group_rows))
            num_bytes += group.nbytes
            writer.write_table(group, row_group_size=group_rows)
    return num_bytes


def _rows(data: datasets.Dataset, start: int, stop: int) -> pa.Table:
    """Reads rows into one chunk, whatever chunks and files they lie in, with the content of images and the like."""
    rows = data.with_format("arrow")[start:stop]
    if any(require_storage_embed(feature) for feature in data.features.values()):
        rows = embed_table_storage(rows)
    return rows.cast(data.features.arrow_schema).combine_chunks()


def _row_bytes(data: datasets.Dataset) -> float:
    """Mean bytes of a row, from rows all over the dataset: the same rows give the same, wherever they lie."""
    step = max(1, len(data) // SAMPLES)
    samples = [_rows(data, start, min(len(data), start + SAMPLE_ROWS)) for start in range(0, len(data), step)]
    mean: float = sum(sample.nbytes for sample in samples) / sum(sample.num_rows for sample in samples)
    return max(1.0, mean)


def _power_of_two(number: float) -> int:
    """The largest one that does not exceed a number, and at least 1."""
    return int(2 ** max(0, math.floor(math.log2(max(1.0, number)))))
