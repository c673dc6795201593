"""A step's rows on disk: a table in the result's folder, and the origin of each row."""

from __future__ import annotations

from pathlib import Path

from datadreamer_like.graph.node import Node
from datadreamer_like.graph.origin import Origin
from datadreamer_like.graph.results import Kept
from datadreamer_like.graph.rows import Rows
from datadreamer_like.storage.tables import TableWriter, read_table
from datadreamer_like.storage.values import holds_pickles

from .trace import lazy_origins

TABLE_FOLDER = "dataset"


def save_rows(node: Node, rows: Rows, draft: Path) -> Kept:
    """Writes a node's rows into the folder of its result."""
    folder = draft / TABLE_FOLDER
    folder.mkdir()
    writer = TableWriter(folder, what=f'"{node.name}"', schema=rows.schema)
    node.usage.total_rows = rows.num_rows
    try:
        for batch in rows.read():
            writer.write(batch)
            node.usage.add(rows=batch.num_rows)
        schema = writer.close(node.fingerprint)
    except BaseException:
        writer.abort()
        raise
    origins = {
        node.fingerprint: origin.save(draft, f"lazy-origin-{index}")
        for index, (node, origin) in enumerate(lazy_origins(node.parents))
    }
    return node.kept(
        columns=list(schema.names),
        rows=writer.num_rows,
        pickled=holds_pickles(schema),
        result={"origin": rows.origin.save(draft), "origins of lazy rows": origins},
    )


def open_rows(node: Node) -> Rows:
    """Returns a node's rows from the folder of its result."""
    assert node.manifest is not None
    folder = node.result_folder
    origin = Origin.load(folder, node.manifest.result.get("origin"), [node, *node.parents])
    return Rows.of_table(read_table(folder / TABLE_FOLDER), origin, node)
