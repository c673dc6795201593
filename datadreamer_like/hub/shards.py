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

# A row group is read whole by the Hub's viewer and by streaming readers: some MB are a good size.
ROW_GROUP_BYTES = 16 * 1024 * 1024
MOST_ROWS_A_GROUP = 2**16
# Chunking by content lets the Hub store a dataset that changed a little for the price of the change.
WRITER_OPTIONS: dict[str, Any] = {"compression": "snappy", "write_page_index": True} | (
    {"use_content_defined_chunking": True} if int(pa.__version__.split(".")[0]) >= 21 else {}
)


@dataclass(frozen=True)
class Shard:
    """One Parquet file.

    Attributes:
        file: Where it lies on this machine.
        path_in_repo: Where it belongs in the repository.
        size: Bytes of the file.
        num_bytes: Bytes of its rows in memory, as Arrow counts them.
    """

    file: Path
    path_in_repo: str
    size: int
    num_bytes: int


def write_shards(
    data: datasets.Dataset, *, split: str, data_dir: str, folder: Path, max_shard_size: int
) -> Iterator[Shard]:
    """Writes one split as shards of about `max_shard_size` bytes, yielding each before the next is begun.

    Only one row group is in memory at a time, and the caller may delete a shard's file once it has it.

    Args:
        data: The rows.
        split: Name of the split.
        data_dir: Folder of the shards in the repository.
        folder: Existing folder for the files.
        max_shard_size: Size that a shard aims at, in bytes of Arrow data.

    Yields:
        The shards, in the order of the rows; one without rows for a split without rows.
    """
    rows = len(data)
    group_rows = _group_rows(data)
    groups_a_shard = max(1, max_shard_size // (math.ceil(_row_bytes(data)) * group_rows))
    shard_rows = group_rows * groups_a_shard
    count = max(1, math.ceil(rows / shard_rows))
    for index in range(count):
        name = f"{split}-{index:05d}-of-{count:05d}.parquet"
        start = index * shard_rows
        file = folder / name
        num_bytes = _write(data, start, min(rows, start + shard_rows), group_rows, file)
        yield Shard(file, f"{data_dir}/{name}", file.stat().st_size, num_bytes)


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
    return max(1.0, data.data.nbytes / max(1, data.data.num_rows))


def _group_rows(data: datasets.Dataset) -> int:
    """Rows of a row group: a power of two, so that a few bytes more or less a row do not move every boundary."""
    fitting = max(1.0, ROW_GROUP_BYTES / _row_bytes(data))
    return int(min(MOST_ROWS_A_GROUP, 2 ** math.floor(math.log2(fitting))))
