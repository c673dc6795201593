"""The curves of a training run: its figures by step, as JSON and, if matplotlib is installed, as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datadreamer_like.errors import MissingExtra
from datadreamer_like.report import curves, write_png
from datadreamer_like.storage.folders import write_file

CURVES_NAME, PICTURE_NAME = "curves.json", "curves.png"
_OF_THE_MACHINE = ("_runtime", "_per_second", "total_flos")


def points(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns the points of the log of a training loop of transformers, without figures of the machine's speed.

    Each has "step" and "epoch", and "loss", the mean since the point before, with "learning_rate" and "grad_norm"; or
    the figures of an evaluation, whose names start with "eval_".
    """
    found = [entry for entry in log_history if "loss" in entry or "eval_loss" in entry]
    return [
        {name: float(value) for name, value in sorted(entry.items()) if not name.endswith(_OF_THE_MACHINE)}
        for entry in found  # whose order differs after a resume
    ]


def write_curves(folder: Path, found: Sequence[Mapping[str, float]]) -> None:
    """Writes the points of a run, and draws the losses over the epochs."""
    write_file(folder / CURVES_NAME, json.dumps(list(found), indent=1))
    lines = {}
    for key, name in (("loss", "training"), ("eval_loss", "validation")):
        shown = [point for point in found if key in point]
        if shown:
            lines[name] = [point["epoch"] for point in shown], [point[key] for point in shown]
    try:
        picture = curves(lines, "epoch", "loss")
    except MissingExtra:
        return
    draft = folder / f".{PICTURE_NAME}"
    write_png(picture, draft)
    draft.replace(folder / PICTURE_NAME)


def read_curves(folder: Path) -> list[dict[str, float]]:
    """Reads the points of a run; empty for a result of a version that kept none."""
    path = folder / CURVES_NAME
    found: list[dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found
