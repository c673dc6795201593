"""What stands in a node's folder beside its result: what it is, what decided it, and how it came about."""

from __future__ import annotations

import json
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
        fingerprint: Hash of all that decides the result.
        parts: What went into the fingerprint, each with its own: a rerun says which of them changed.
        columns: Column names of the result, for steps.
        rows: Number of rows, for steps.
        pickled: Whether the table holds pickled Python objects.
        card: The node's card, without its parents'.
        failures: Row index to error, for the first thousand rows that have an error in place of a value.
        result: Anything else that the node's class wants to read back without opening its result.
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
    failures: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes the manifest into a folder that is not in use yet."""
        (folder / MANIFEST_NAME).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Reads a folder's manifest; None where there is no folder.

        Raises:
            NewerFormat: The folder was written by a newer version of this package.
            StorageError: The folder is not a node's.
        """
        path = folder / MANIFEST_NAME
        try:
            data = dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            if folder.exists():
                raise StorageError(
                    f"{folder} is in the way: it is not a folder that this package wrote (it has no {MANIFEST_NAME}). "
                    "Move it away or choose another output folder."
                ) from None
            return None
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path} is damaged ({error}). Remove the folder {folder} to make it anew.") from error
        if data.get("format", 0) > MANIFEST_FORMAT:
            raise NewerFormat(
                f"{folder} was written by a newer version of datadreamer-like (its format is {data['format']}, this "
                f'version reads up to {MANIFEST_FORMAT}). Run: pip install --upgrade "datadreamer-like", or choose '
                "another output folder."
            )
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})

    def difference(self, parts: dict[str, str]) -> str:
        """Says in words what differs between this result's fingerprint and a new one's."""
        changed = [
            f"{name} {_verb(name, self.parts, parts)}"
            for name in {**self.parts, **parts}
            if self.parts.get(name) != parts.get(name)
        ]
        return ", ".join(changed) or "it was made by another version"


def _verb(name: str, old: dict[str, str], new: dict[str, str]) -> str:
    if name not in old:
        return "was added"
    return "was removed" if name not in new else "changed"
