"""Prints code metrics: long files and classes, duplicated blocks, untested names, files touched by commits.

For information only; it never fails a build. Standard library only; takes a second or two.
"""

import ast
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "datadreamer_like"
FOLDERS = (PACKAGE, "tests", "benchmarks", "examples", "scripts")
BLOCK = 6
"""Minimum number of lines of a duplicated block."""
SHOWN = 10
COMMITS = 20


@dataclass
class Source:
    """One Python file, read and parsed once."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """The path relative to the root."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def room(self) -> str:
        """The folder of the file below the package, or the file itself at the top level."""
        return self.path.relative_to(ROOT / PACKAGE).parts[0]

    @cached_property
    def lines(self) -> list[str]:
        """The text by lines, line 1 at index 0."""
        return self.text.splitlines()

    @cached_property
    def statements(self) -> list[tuple[int, str]]:
        """Line number and text of each line of code, without blanks, comments, docstrings and imports."""
        silent: set[int] = set()
        for node in ast.walk(self.tree):
            if is_docstring(node) or isinstance(node, ast.Import | ast.ImportFrom):
                silent.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        bare = ((number, " ".join(line.split())) for number, line in enumerate(self.lines, 1) if number not in silent)
        return [(number, line) for number, line in bare if re.search(r"\w", line) and not line.startswith("#")]


def is_docstring(node: ast.AST) -> TypeGuard[ast.Expr]:
    """Whether the node is a string expression statement."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def read_sources(folders: Iterable[str]) -> list[Source]:
    """Returns all Python files of the folders; files with syntax errors are reported and skipped."""
    found = []
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        try:
            found.append(Source(path, text, ast.parse(text)))
        except SyntaxError as error:
            print(f"left out, does not parse: {path.relative_to(ROOT)}:{error.lineno}")
    return found


# -- what grew


def span(node: ast.stmt) -> int:
    """Returns the number of lines of a statement, without its docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    for child in ast.iter_child_nodes(node):
        if is_docstring(child):
            lines -= (child.end_lineno or child.lineno) - child.lineno + 1
    return lines


def sized(sources: Iterable[Source], *kinds: type[ast.stmt]) -> list[tuple[int, str]]:
    """The longest definitions of these kinds: lines and place."""
    rows = [
        (span(node), f"{source.name}:{node.lineno} {getattr(node, 'name', '')}")
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, kinds) and isinstance(node, ast.stmt)
    ]
    return sorted(rows, reverse=True)[:SHOWN]


def members(sources: Iterable[Source]) -> list[tuple[int, str]]:
    """The classes with the most public methods."""
    rows = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                names = [child.name for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
                rows.append(
                    (sum(not name.startswith("_") for name in names), f"{source.name}:{node.lineno} {node.name}")
                )
    return sorted(rows, reverse=True)[:SHOWN]


# -- duplicates


def repeated_blocks(sources: Sequence[Source]) -> list[tuple[int, str]]:
    """Returns runs of at least `BLOCK` equal lines in two places, each at its full length."""
    places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for index, source in enumerate(sources):
        lines = [line for _, line in source.statements]
        for start in range(len(lines) - BLOCK + 1):
            places[tuple(lines[start : start + BLOCK])].append((index, start))

    # Two windows belong to one run if both are one line further in the same two files.
    pairs = sorted(
        {pair for found in places.values() for pair in pairwise(found)},
        key=lambda pair: (pair[0][0], pair[1][0], pair[1][1] - pair[0][1], pair[0][1]),
    )
    rows: list[tuple[int, str]] = []
    run: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def close() -> None:
        where = (f"{sources[file].name}:{sources[file].statements[start][0]}" for file, start in run[0])
        rows.append((len(run) + BLOCK - 1, " = ".join(where)))

    for pair in pairs:
        if run and (*pair[0], *pair[1]) != (run[-1][0][0], run[-1][0][1] + 1, run[-1][1][0], run[-1][1][1] + 1):
            close()
            run = []
        run.append(pair)
    if run:
        close()
    return sorted(rows, reverse=True)


# -- what each room holds


@dataclass
class Room:
    """The figures of one room."""

    files: int = 0
    lines: int = 0
    longest: int = 0
    inner_imports: int = 0
    inner_own_imports: int = 0
    ignores: int = 0
    noqa: int = 0
    anys: int = 0
    public: list[str] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)


def imports_inside_functions(source: Source) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yields imports inside functions."""
    seen: set[ast.AST] = set()
    for function in ast.walk(source.tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom) and node not in seen:
                    seen.add(node)
                    yield node


def is_own(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import names this package."""
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] == PACKAGE
    return any(alias.name.split(".")[0] == PACKAGE for alias in node.names)


def public_names(stub: Path) -> list[str]:
    """Returns the public names in a room's `__init__.pyi`."""
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    return [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]


def rooms_of(sources: Iterable[Source], tests: Iterable[Source]) -> dict[str, Room]:
    """The figures of every room, by name."""
    rooms: dict[str, Room] = defaultdict(Room)
    for source in sources:
        room = rooms[source.room]
        room.files += 1
        room.lines += len(source.lines)
        room.longest = max(room.longest, len(source.lines))
        inner = list(imports_inside_functions(source))
        room.inner_imports += len(inner)
        room.inner_own_imports += sum(map(is_own, inner))
        room.ignores += source.text.count("# type: ignore")
        room.noqa += source.text.count("# noqa")
        room.anys += sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(source.tree))

    words: dict[str, set[str]] = defaultdict(set)
    for test in tests:
        words[test.path.relative_to(ROOT / "tests").parts[0]] |= set(re.findall(r"\w+", test.text))
    for name, room in rooms.items():
        stub = ROOT / PACKAGE / name / "__init__.pyi"
        room.public = public_names(stub) if stub.exists() else []
        room.untested = [public for public in room.public if public not in words[name]]
    return dict(rooms)


# -- what a change costs


def added_units(commits: int) -> list[tuple[str, int, int, str]]:
    """Returns id, number of added package files, number of touched files and subject of each of the last commits."""
    command = ["git", "-C", str(ROOT), "log", f"-{commits}", "--no-merges", "--name-status", "--format=%x00%h %s"]
    log = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    rows = []
    for commit in log.split("\0")[1:]:
        title, *changes = [line for line in commit.splitlines() if line]
        paths = [change.split("\t") for change in changes]
        added = [
            path
            for status, path, *_ in paths
            if status == "A" and re.fullmatch(PACKAGE + r"/.+/(?!__init__)\w+\.py", path)
        ]
        identifier, _, subject = title.partition(" ")
        rows.append((identifier, len(added), len(paths), subject))
    return rows


# -- the page


def heading(text: str) -> None:
    """Prints an underlined heading."""
    print(f"\n{text}\n{'-' * len(text)}")


def table(rows: Iterable[tuple[int, str]], unit: str = "lines") -> None:
    """Prints rows of a figure and a place."""
    for figure, place in rows:
        print(f"{figure:6d} {unit}  {place}")


def print_rooms(rooms: dict[str, Room]) -> None:
    """Prints the table of rooms, and public names that no test of their room mentions."""
    heading(
        "Rooms (inner = imports inside functions, own = those of this package; untested = not named in tests/<room>)"
    )
    columns = ("files", "lines", "longest", "inner", "own", "ignore", "noqa", "Any", "public", "untested")
    print(f"{'':20}" + "".join(f"{column:>9}" for column in columns))
    total: Counter[str] = Counter()
    for name, room in sorted(rooms.items()):
        inner, public = (room.inner_imports, room.inner_own_imports), (len(room.public), len(room.untested))
        figures = (room.files, room.lines, room.longest, *inner, room.ignores, room.noqa, room.anys, *public)
        total.update(dict(zip(columns, figures, strict=True)))
        print(f"{name:20}" + "".join(f"{figure or '.':>9}" for figure in figures))
    total["longest"] = max((room.longest for room in rooms.values()), default=0)
    print(f"{'all':20}" + "".join(f"{total[column]:>9}" for column in columns))
    for name, room in sorted(rooms.items()):
        if room.untested:
            print(f"untested in {name}: {', '.join(room.untested)}")


def main() -> None:
    """Prints the page."""
    sources = read_sources(FOLDERS)
    package = [source for source in sources if source.path.is_relative_to(ROOT / PACKAGE)]
    tests = [source for source in sources if source.path.is_relative_to(ROOT / "tests")]

    print_rooms(rooms_of(package, tests))
    heading("Longest files")
    table(sorted(((len(source.lines), source.name) for source in package), reverse=True)[:SHOWN])
    heading("Longest classes (docstring not counted)")
    table(sized(package, ast.ClassDef))
    heading("Classes with the most public methods")
    table(members(package), unit="methods")
    heading("Longest functions (docstring not counted)")
    table(sized(package, ast.FunctionDef, ast.AsyncFunctionDef))

    for title, group in (
        ("the package", package),
        ("tests, benchmarks, examples and scripts", [source for source in sources if source not in package]),
    ):
        blocks = repeated_blocks(group)
        heading(f"Duplicated blocks of {BLOCK} lines and more in {title}: {len(blocks)}")
        table(blocks[:SHOWN])

    heading("Imports of this package inside functions (they hide cycles)")
    for source in package:
        for node in imports_inside_functions(source):
            if is_own(node):
                print(f"  {source.name}:{node.lineno} {ast.unparse(node)}")

    heading(f"Files touched by the last {COMMITS} commits, and units (package files) that each added")
    units = added_units(COMMITS)
    if not units:
        print("no commits")
    for identifier, added, touched, subject in units:
        share = f"{touched / added:5.1f} a unit" if added else ""
        print(f"{identifier:>9} {touched:5d} files {added:4d} added {share:13} {subject[:70]}")


if __name__ == "__main__":
    main()
