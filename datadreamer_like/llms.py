"""DataDreamer's name for the LLMs of `datadreamer_like.models`: it offers the names of that room."""

from typing import TYPE_CHECKING, Any

from datadreamer_like import models

if TYPE_CHECKING:
    from datadreamer_like.models import *  # noqa: F403

__all__ = dir(models)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(models, name)


def __dir__() -> list[str]:
    return sorted(__all__)
