"""The origin of a row: a tree of the rows it came from, through all steps and operations back to the sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from datadreamer_like.errors import DefinitionError, NoSuchRow
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.origin import INPUT, Link, Origin, Several
from datadreamer_like.graph.origin import Positions as Places
from datadreamer_like.graph.output import OutputIterableDataset
from datadreamer_like.graph.row_numbers import whole_number

Positions = np.ndarray[Any, np.dtype[np.int64]]

PROMPT_COLUMNS = ("prompts", "judge_prompts")
"""Columns in which prompting steps keep the prompts that they sent."""

# A printed tree shows at most this many parents of a row.
_MOST_SHOWN = 5
_WIDEST = 100


@dataclass(eq=False)
class Trace:
    """A row and its origin.

    Attributes:
        node: Name of the node that made the row.
        class_name: Class of that node.
        index: Position of the row; None where only the node is known.
        role: Its role in the row that came from it: `input`, `example`, `document`; `row` for the traced row itself.
        values: The row's values by column; None where they cannot be read.
        prompt: The prompt sent for the row, for a prompting step.
        parents: The rows that it came from.
    """

    node: str
    class_name: str
    index: int | None
    role: str = "row"
    values: dict[str, Any] | None = None
    prompt: Any = None
    parents: list[Trace] = field(default_factory=list, repr=False)

    def walk(self) -> Iterator[Trace]:
        """Yields this row and all its ancestors, each once."""
        seen: set[int] = set()
        waiting = [self]
        while waiting:
            trace = waiting.pop()
            if id(trace) not in seen:
                seen.add(id(trace))
                yield trace
                waiting.extend(reversed(trace.parents))

    def __str__(self) -> str:
        lines: list[str] = []
        seen: set[int] = set()
        waiting: list[tuple[Trace | int, int, str]] = [(self, 0, self.role)]
        while waiting:
            trace, depth, role = waiting.pop()
            indent = "  " * depth
            if isinstance(trace, int):
                lines.append(f"{indent}... and {trace:,} more")
                continue
            row = "" if trace.index is None else f", row {trace.index:,}"
            shown = trace.parents and id(trace) in seen
            lines.append(f"{indent}{role}: {trace.node} ({trace.class_name}){row}{' (see above)' if shown else ''}")
            if shown:
                continue
            seen.add(id(trace))
            lines += [f"{indent}    {name} = {_short(value)}" for name, value in (trace.values or {}).items()]
            if len(trace.parents) > _MOST_SHOWN:
                waiting.append((len(trace.parents) - _MOST_SHOWN, depth + 1, ""))
            waiting += [(parent, depth + 1, parent.role) for parent in reversed(trace.parents[:_MOST_SHOWN])]
        return "\n".join(lines)


def traced(step: Any, index: int) -> Trace:
    """Returns the origin of a step's row; see `Step.trace`."""
    size, index = step.output.num_rows, whole_number(index, f'trace: the position of a row of "{step.name}"')
    position = index + size if index < 0 and size is not None else index
    if position < 0 or (size is not None and position >= size):
        known = f"it has {size:,} rows" if size is not None else "the number of its lazy rows is unknown"
        raise NoSuchRow(f'"{step.name}" has no row {index}; {known}.')
    root = Trace(step.name, type(step).__name__, position)
    found = {(id(step), position, "row"): root}
    # Rows to look up, each with the origins learned of the lazy rows before it.
    waiting: list[tuple[Any, int, Trace, dict[str, Origin]]] = [(step, position, root, {})]
    while waiting:
        node, position, trace, learned = waiting.pop()
        _read_values(node, position, trace)
        learned = {**learned, **_stored_origins(node)}
        links = _links(node, position, learned)
        for link in links:
            for place in link.of(position):
                key = (id(link.parent) if link.parent is not None else hash(link.name), place, link.role)
                if key not in found:
                    found[key] = _parent(node, trace, link, place)
                    if getattr(link.parent, "_output", None) is not None:
                        waiting.append((link.parent, place, found[key], learned))
                trace.parents.append(found[key])
        if hasattr(node, "prompt_at"):
            places = (place for link in links if link.role == INPUT for place in link.of(position))
            trace.prompt = next(map(node.prompt_at, places), None)
        covered = {id(link.parent) for link in links}
        others = [parent for parent in node.parents if id(parent) not in covered]
        trace.parents += [Trace(parent.name, type(parent).__name__, None, INPUT) for parent in others]
    return root


def _parent(node: Any, trace: Trace, link: Link, place: int) -> Trace:
    parent: Any = link.parent
    if parent is None:
        return Trace(link.name, link.class_name, place, link.role)
    values = None
    if getattr(node, "moves_rows", False) and _is_lazy(parent) and trace.values is not None:
        names = parent.output.column_names
        if set(names) <= set(trace.values):  # moved unchanged, so the parent's row need not be generated again
            values = {name: trace.values[name] for name in names}
    return Trace(parent.name, type(parent).__name__, place, link.role, values)


def _read_values(node: Any, index: int, trace: Trace) -> None:
    if trace.values is None:
        try:
            values = node.output.rows.values_at(index)
        except IndexError:
            raise NoSuchRow(f'"{node.name}" has no row {index}.') from None
        trace.values = {name: column[0] for name, column in values.items()}
    trace.prompt = next((trace.values[name] for name in PROMPT_COLUMNS if name in trace.values), None)


def _links(node: Any, index: int, learned: dict[str, Origin]) -> tuple[Link, ...]:
    rows = node.output.rows
    origin: Origin = rows.origin
    if rows.table is None and node.fingerprint in learned and learned[node.fingerprint].covers(index):
        origin = learned[node.fingerprint]
    if not origin.covers(index):
        for _ in rows.read():
            if origin.covers(index):
                break
    return origin.links or ()


def _is_lazy(node: Any) -> bool:
    return isinstance(getattr(node, "_output", None), OutputIterableDataset)


def _stored_origins(node: Any) -> dict[str, Origin]:
    """Returns the stored origins of the lazy rows that a finished step was made from, by fingerprint."""
    described = node.manifest.result.get("origins of lazy rows") if node.manifest is not None else None
    if not described:
        return {}
    nodes = [parent for lazy in lazy_nodes(node.parents) for parent in (lazy, *lazy.parents)]
    return {fingerprint: Origin.load(node.result_folder, links, nodes) for fingerprint, links in described.items()}


def rows_from(step: Any, source: Any, total: int) -> tuple[Positions, Positions]:
    """Returns pairs of positions: of a step's `total` rows, and of the source's rows they came from, in any role.

    Raises:
        DefinitionError: The step is not made from the source, or the origin of rows between them is unknown.
    """
    between = _between(step, source)
    if not between:
        raise DefinitionError(f'"{step.name}" is not made from "{source.name}", so its rows do not come from there.')
    every = np.arange(total)
    waiting: list[tuple[Any, Positions, Positions, dict[str, Origin]]] = [(step, every, every, {})]
    found = []
    while waiting:
        node, rows, places, learned = waiting.pop()
        if node is source:
            found.append(np.stack([rows, places]))
        elif len(places) and id(node) in between:
            learned = {**learned, **_stored_origins(node)}
            links = _known_links(node, int(places.max()), learned)
            if links is None:
                raise DefinitionError(
                    f'The origin of the rows of "{node.name}" is unknown, so which rows of "{source.name}" they came '
                    "from is too. State it with Traced(rows, From(...)) in run(), or use a column."
                )
            waiting += [(link.parent, *_followed(link, rows, places), learned) for link in links]
    pairs = np.unique(np.concatenate(found, axis=1), axis=1) if found else np.empty((2, 0), dtype=np.int64)
    return pairs[0], pairs[1]


def followed(step: Any, origin: Origin, total: int) -> Origin:
    """Returns an origin with links to the step's parents for rows that came from there through steps inside it.

    Args:
        step: A step that has made its rows, and the steps inside it that they came from.
        origin: The origin of these rows.
        total: Number of rows.
    """
    outer = {id(parent) for parent in step.parents}
    found: dict[tuple[Any, str], list[Positions]] = {}
    links = []
    for link in origin.links or ():
        pairs = _through(link, step.parents, np.arange(total)) if link.parent and id(link.parent) not in outer else None
        links.append(link if pairs is None else replace(link, is_followed=True))
        for key, parts in (pairs or {}).items():
            found.setdefault(key, []).extend(parts)
    for (parent, role), parts in found.items():
        rows, places = np.unique(np.concatenate(parts, axis=1), axis=1)
        ends = np.cumsum(np.bincount(rows, minlength=total))
        same = np.array_equal(rows, places) and np.array_equal(rows, np.arange(total))
        links.append(Link(parent, None if same else Places([0], [Several(ends, places)]), role))
    return origin if origin.links is None else replace(origin, links=tuple(links))


def _through(link: Link, parents: Sequence[Node], every: Positions) -> dict[tuple[Any, str], list[Positions]] | None:
    """Returns pairs of positions of rows and of their sources among some nodes, by node and role; None if unknown."""
    between = {id(parent) for parent in parents}.union(*(_between(link.parent, parent) for parent in parents))
    outer = {id(parent) for parent in parents}
    found: dict[tuple[Any, str], list[Positions]] = {}
    waiting: list[tuple[Any, Positions, Positions, str, dict[str, Origin]]] = [
        (link.parent, *_followed(link, every, every), link.role, {})
    ]
    while waiting:
        node, rows, places, role, learned = waiting.pop()
        if id(node) in outer:
            found.setdefault((node, role), []).append(np.stack([rows, places]))
        elif len(places) and id(node) in between:
            learned = {**learned, **_stored_origins(node)}
            links = _known_links(node, int(places.max()), learned)
            if links is None:
                return None
            for each in links:
                kept = role if each.role == INPUT else each.role
                waiting.append((each.parent, *_followed(each, rows, places), kept, learned))
    return found


def _known_links(node: Any, index: int, learned: dict[str, Origin]) -> list[Link] | None:
    """Returns the links of a node's rows up to a position that lead to other nodes; None if their origin is unknown."""
    links = _links(node, index, learned)
    if not links or any(link.parent is None and not link.is_followed for link in links):
        return None
    return [link for link in links if link.parent is not None]


def _between(step: Any, source: Any) -> set[int]:
    """Returns the ids of a step and of its ancestors, those that are made from the source."""
    children: dict[int, list[Any]] = {}
    waiting, seen = [step], {id(step)}
    while waiting:
        node = waiting.pop()
        for parent in node.parents:
            children.setdefault(id(parent), []).append(node)
            if id(parent) not in seen:
                seen.add(id(parent))
                waiting.append(parent)
    found: set[int] = set()
    waiting = [*children.get(id(source), [])]
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found.add(id(node))
            waiting += children.get(id(node), [])
    return found


def _followed(link: Link, rows: Positions, places: Positions) -> tuple[Positions, Positions]:
    if link.rows is None:
        return rows, places
    found = [link.of(place) for place in places.tolist()]
    sources = np.array([source for each in found for source in each], dtype=np.int64)
    return np.repeat(rows, [len(each) for each in found]), sources


def lazy_nodes(parents: Iterable[Node]) -> list[Any]:
    """Returns the lazy steps among some nodes, and their lazy ancestors up to the first saved step."""
    found: dict[int, Any] = {}
    waiting: list[Any] = list(parents)
    while waiting:
        node = waiting.pop()
        if id(node) not in found and _is_lazy(node):
            found[id(node)] = node
            waiting.extend(node.parents)
    return list(found.values())


def lazy_origins(parents: Iterable[Node]) -> list[tuple[Node, Origin]]:
    """Returns the origins learned in a pass over lazy rows, with their steps."""
    origins = [(node, node.output.rows.origin) for node in lazy_nodes(parents)]
    return [(node, origin) for node, origin in origins if origin.rows is not None and origin.links]


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 4]} ..."
