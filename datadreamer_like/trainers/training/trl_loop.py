"""What the loops of trl share here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .loop import LoopOverExamples


class TRLLoop(LoopOverExamples):
    """A loop of trl, named after this class by a subclass, whose own figures count each validation row once."""

    _metrics: Any  # trl's figures of each batch, "train" and "eval"

    def validation_figures(self, sizes: Sequence[int]) -> dict[str, float]:
        """Returns the means of trl's figures over the rows; those of batches are forgotten."""
        batches = {name: [float(each) for each in values] for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        # Some are sums over all batches so far.
        return {
            name: float(np.average(values, weights=sizes)) if len(values) == len(sizes) else values[-1]
            for name, values in batches.items()
        }

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the trainer writes the card."""
