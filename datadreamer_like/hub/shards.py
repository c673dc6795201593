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
        group_rows = _group_rows(data)
        shard_rows = group_rows * max(1, max_shard_size // math.ceil(_row_bytes(data) * group_rows))
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
    schema = data.features.arrow_schema
    embeds = any(require_storage_embed(feature) for feature in data.features.values())
    rows = data.with_format("arrow")
    num_bytes = 0
    with pq.ParquetWriter(file, schema, **WRITER_OPTIONS) as writer:
        for first in range(start, stop, group_rows):
            table = rows[first : min(stop, first + group_rows)]
            if embeds:
                table = embed_table_storage(table)
            # Pages follow the chunks of a table, and those depend on how the rows were made.
            table = table.cast(schema).combine_chunks()
            num_bytes += table.nbytes
            writer.write_table(table, row_group_size=group_rows)
    return num_bytes


def _row_bytes(data: datasets.Dataset) -> float:
    """Mean bytes of a row in the table behind the dataset, which may hold more rows than were selected."""
    mean: float = data.data.nbytes / max(1, data.data.num_rows)
    return max(1.0, mean)


def _group_rows(data: datasets.Dataset) -> int:
    """Rows of a row group: a power of two, so that a few bytes more or less a row do not move every boundary."""
    fitting = max(1.0, ROW_GROUP_BYTES / _row_bytes(data))
    return int(min(MOST_ROWS_A_GROUP, 2 ** math.floor(math.log2(fitting))))
