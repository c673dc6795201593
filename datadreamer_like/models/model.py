"""What every model says of itself, to cards, displays and fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datadreamer_like.graph.fingerprint import is_installed


class Model:
    """Base of LLMs, task models and retrievers: where it comes from, what it is called, what decides its results.

    Attributes:
        model_name: The model, as the script gave it.
        cache_folder_path: Where results are cached, in place of the session's folder.
    """

    model_name: str = ""
    cache_folder_path: str | Path | None = None
    icon: str = ""

    def identity(self) -> dict[str, Any]:
        """Returns all that decides a result beside class, name, version and what is asked; never a secret."""
        return {}

    @property
    def model_card(self) -> str | None:
        """Address of the model's card."""
        return None

    @property
    def license(self) -> str | None:
        """The model's licence, or where it stands."""
        return None

    @property
    def citation(self) -> list[str] | None:
        """BibTeX entries to cite when using the model."""
        return None

    @property
    def version(self) -> float:
        """Version of this class's behaviour; raising it makes the results of older versions stale."""
        return 1.0

    @property
    def display_icon(self) -> str:
        """A symbol for the display."""
        return self.icon

    @property
    def display_name(self) -> str:
        """Class and model, for people."""
        return f"{type(self).__name__} ({self.model_name})" if self.model_name else type(self).__name__

    def unload_model(self) -> None:
        """Frees memory that the model holds; it is loaded again when it is needed."""

    def __fingerprint__(self) -> Any:
        kind = type(self)
        # Our own classes say with `version` when their results change; of a script's own class, the code says it.
        code: object = f"{kind.__module__}.{kind.__qualname__}" if is_installed(kind.__module__) else kind
        return {"class": code, "version": self.version, "model": self.model_name, **self.identity()}

    def __repr__(self) -> str:
        return f"<{self.display_name}>"
