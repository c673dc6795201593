"""The stage that fits the threshold under which a classifier abstains, with a guarantee for its answers above."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import DataError
from datadreamer_like.evaluation.abstention import fit_threshold, rows_needed
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import only_known
from datadreamer_like.models.trained.confidence import Confidence, Threshold
from datadreamer_like.models.trained.model_facts import dtype_name
from datadreamer_like.models.trained.predictions import log_odds

from .held_out import HeldOutRows, HeldOutStage

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("datadreamer_like")


class Abstain(HeldOutStage):
    """Fits the threshold above which a classifier answers; below it, it abstains and hands over.

    The guarantee: with a probability of at least `confidence` over the choice of the held-out rows, at most `max_error`
    of the answers that the model gives to further rows of the same distribution are wrong; see
    `evaluation.fit_threshold` for the method, and for what it does not cover. The result is the same model with its
    threshold: `predict_or_abstain(texts, fallback)` answers or hands over, in this session, or from the exported folder
    in any other; the step `PredictOrAbstain` hands rows over to an LLM. A row of a multi-label model is answered if all
    of its decisions are certain, and wrong if one of them is.

    The threshold belongs to the files that it was fitted on. Fit it last, on the model that ships: one that is pruned,
    quantized or calibrated afterwards has none, and one whose files were changed is refused. A temperature must be
    fitted on other rows than the threshold.

    Args:
        model: The classifier: a trainer, a stage, a `TrainedModel`, a folder, or an id on the Hub. It is not changed.
        inputs: Column of texts that neither training nor the choice of the model has seen; some hundreds, at least
            `evaluation.rows_needed(max_error, confidence)`.
        labels: Column of their labels.
        max_error: The largest share of wrong answers among those that the model gives.
        confidence: The probability of the guarantee.
        batch_size: Texts in a batch.
        max_length: Texts are cut at this many tokens, here and later; None for the model's own limit.
        device: Device for the work and the result, such as "cuda"; None for the device of `model`.

    Raises:
        SessionError: There is no session.
        NotTrained: The model is a trainer that was not trained yet.
        MethodMisfit: The model is not a classifier.
        LabelError: A label is not one of the model's classes.
        DataError: There are fewer rows than the guarantee needs, or a value is missing.
        EmptyDataset, DefinitionError: The columns do not fit together, or a share is not between 0 and 1.

    Example:
        >>> sure = Abstain(  # doctest: +SKIP
        ...     "Sure", small, heldout.output["text"], heldout.output["topic"], max_error=0.02
        ... )
        >>> sure.predict_or_abstain(texts, fallback=ask_the_llm).labels  # doctest: +SKIP
    """

    papers = ("2110.01052", "1705.08500")

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        options = {"max_error": 0.5, "confidence": 0.5}
        return {"model": model, "inputs": ["a cat", "a dog"], "labels": ["cat", "dog"], **options}

    held_out_from = ("input ",)  # also validation rows, which chose the model, and those of a temperature

    @only_known
    def __init__(
        self,
        name: str,
        model: object,
        inputs: Column,
        labels: Column,
        *,
        max_error: float = 0.02,
        confidence: float = 0.95,
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | int | torch.device | None = None,
        force: bool = False,
        progress_interval: float | None = 60,
    ) -> None:
        needed, rows = rows_needed(max_error, confidence), getattr(inputs, "num_rows", None)
        if rows and rows < needed:
            raise DataError(
                f'"{name}": inputs has {rows:,} rows, and a bound of {100 * max_error:.2f} % with a confidence of '
                f"{100 * confidence:.2f} % needs at least {needed:,}. Pass more held-out rows, or raise max_error."
            )
        self.max_error, self.confidence = max_error, confidence
        super().__init__(
            name, model, inputs, labels, {"max_error": max_error, "confidence": confidence}, batch_size=batch_size,
            max_length=max_length, device=device, force=force, progress_interval=progress_interval,
        )  # fmt: skip

    @property
    def threshold(self) -> Threshold:
        """The threshold, with the counts that it was fitted on."""
        found = self.trained.confidence.threshold
        assert found is not None
        return found

    @property
    def coverage(self) -> float:
        """The share of the held-out rows that the model answers."""
        return self.threshold.coverage

    def fit(self, rows: HeldOutRows, before: Confidence) -> Confidence:
        """Fits the threshold on the log-odds at the model's temperature."""
        scores = log_odds(before.scaled(rows.logits), rows.multi_label)
        found = fit_threshold(scores, rows.correct, max_error=self.max_error, confidence=self.confidence)
        found = replace(found, max_length=self.max_length, dtype=dtype_name(self.dtype))
        if not found.answered:
            logger.warning(
                "%s: no threshold is shown to keep the error within %.2f %%, so the model hands every row over. It is "
                "wrong in %.2f %% of the %s rows. Pass more rows, raise max_error, or improve the model.",
                self.name, 100 * self.max_error, 100 * float(1 - rows.correct.mean()), f"{found.rows:,}",
            )  # fmt: skip
        self.card.metrics |= {"coverage": round(found.coverage, 6), "accuracy": round(float(rows.correct.mean()), 6)}
        self.card.facts["Guarantee"] = (
            f"at most {100 * self.max_error:.2f} % of the answers are wrong, "
            f"with a confidence of {100 * self.confidence:.2f} %"
        )
        self.card.facts["Answered"] = f"{found.answered:,} of {found.rows:,} rows, {found.errors:,} of them wrong"
        return replace(before, threshold=found)
