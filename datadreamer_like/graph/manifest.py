"""The manifest in a node's folder: its result, fingerprint, failed rows and card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from datadreamer_like.errors import NewerFormat, StorageError

MANIFEST_FORMAT = 1
MANIFEST_NAME = "node.json"


@dataclass
class Manifest:
    """The contents of `node.json`.

    Attributes:
        format: Version of this layout.
        name: The node's name when the result was made.
        class_name: The node's class.
        fingerprint: Hash of everything that determines the result.
        parts: Fingerprint of each part, by name; a rerun reports which ones changed.
        columns: Column names of the result, for steps.
        rows: Number of rows, for steps.
        pickled: Whether the table holds pickled Python objects.
        card: The node's card, without its parents.
        failed_rows: Indices of all rows with an error instead of a value, as ranges: "3,7-9".
        failures: Errors by row index, for the first thousand of them.
        result: Further values of the node's class, to read without opening the result.
    """

    name: str
    class_name: str
    fingerprint: str
    parts: dict[str, str]
    format: int = MANIFEST_FORMAT
    columns: list[str] | None = None
    rows: int | None = None
    pickled: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    failed_rows: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[int]:
        """Indices of all rows with an error instead of a value, in order."""
        ranges = [part.split("-") for part in self.failed_rows.split(",") if part]
        return [index for part in ranges for index in range(int(part[0]), int(part[-1]) + 1)]

    def write(self, folder: Path) -> None:
        """Writes the manifest into a folder that is not in use yet."""
        (folder / MANIFEST_NAME).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Reads a folder's manifest; None if the folder does not exist. Other folders than a node's are refused."""
        path = folder / MANIFEST_NAME
        try:
            data = dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            if folder.exists():
                raise StorageError(
                    f"{folder} exists, but was not written by this package (it has no {MANIFEST_NAME}). "
                    "Move it away or choose another output folder."
                ) from None
            return None
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path} is damaged ({error}). Remove the folder {folder} and run again.") from error
        NewerFormat.check(folder, data.get("format", 0), MANIFEST_FORMAT)
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})

    def difference(self, parts: Mapping[str, str]) -> str:
        """Describes the differences between this result's fingerprint and a new one."""
        changed = []
        for name in {**self.parts, **parts}:
            if self.parts.get(name) != parts.get(name):
                verb = "was added" if name not in self.parts else "was removed" if name not in parts else "changed"
                changed.append(f"{name} {verb}")
        return ", ".join(changed) or "it was made by another version"


def row_ranges(indices: Iterable[int]) -> str:
    """Returns row indices as ranges: "3,7-9"."""
    ranges: list[list[int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
