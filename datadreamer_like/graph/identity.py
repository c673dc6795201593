"""The identity of classes that determine results: steps, models, trainers, stages, methods, objectives.

Each declares `result_version: ClassVar[int]`, inherited from its base class and increased when the same arguments give
a different result. This package's classes are identified by name and version alone, so that refactoring does not
invalidate cached results. A script's own class is identified by its code.
"""

from __future__ import annotations

from .fingerprint import fingerprint
from .installed import installed_id, is_installed


def class_id(cls: type) -> str:
    """Returns a class's identity: `steps.Prompt@2`, or `script.Mine@` and a hash of its code for one of a script."""
    if is_installed(cls.__module__):
        return installed_id(cls)
    return f"script.{cls.__qualname__}@{fingerprint(cls, f'class {cls.__name__}')}"


def class_part(cls: type) -> dict[str, str]:
    """Returns the part of a node's fingerprint for its class, by the name that a rerun reports."""
    return {"class" if is_installed(cls.__module__) else "code": class_id(cls)}
