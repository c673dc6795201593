"""What the loops of trl share here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerState

from .loop import LoopOverExamples, Run


class TRLLoop(LoopOverExamples):
    """A loop of trl, named after this class by a subclass, whose own figures count each validation row once."""

    _metrics: Any  # trl's figures of each batch, "train" and "eval"
    _total_train_tokens: int  # trl's count, which its checkpoints do not have

    def __init__(self, run: Run, **options: Any) -> None:
        trained = {name: weight.data for name, weight in run.model.named_parameters() if weight.requires_grad}
        super().__init__(run, **options)
        # trl casts an adapter on codes to bfloat16: small steps are rounded off, and peft loads it again in float32.
        for name, data in trained.items():
            weight = run.model.get_parameter(name)
            if weight.dtype != data.dtype:
                weight.data = data.to(weight.device)

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / "trainer_state.json"))
        counted = [int(entry["num_tokens"]) for entry in state.log_history if "num_tokens" in entry]
        self._total_train_tokens = max(counted, default=0)
