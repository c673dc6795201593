"""What a saved classifier records of its own certainty: a temperature, and a threshold below which it abstains.

Both are fitted on one model, to the bit: they are in a file next to its weights, with a digest of these files, and are
not passed on to a model that is pruned, quantized or trained further from it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datadreamer_like.errors import MethodMisfit, NewerFormat, StorageError
from datadreamer_like.storage.digests import file_digest
from datadreamer_like.storage.folders import write_file

from .model_facts import dtype_name
from .model_files import model_files

if TYPE_CHECKING:
    import torch

CONFIDENCE_NAME = "confidence.json"
CONFIDENCE_FORMAT = 1
_DIGEST = "digest"
_ORIGIN_KEYS = ("_name_or_path", "name_or_path")

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Threshold:
    """A threshold on a classifier's log-odds, above which it answers, with the rows that it was fitted on.

    Attributes:
        log_odds: Rows with larger `log_odds` are answered; infinite if none can be.
        max_error: The largest share of wrong answers among answered rows that is accepted.
        confidence: The probability, over the choice of the rows, that the threshold keeps it.
        rows: Number of rows that it was fitted on.
        answered: Number of them above the threshold.
        errors: Number of wrong answers among these.
        max_length: Texts were cut at this many tokens; None for the model's own limit.
        dtype: Data type in which the model ran; None for that of its files.
    """

    log_odds: float
    max_error: float
    confidence: float
    rows: int
    answered: int
    errors: int
    max_length: int | None = None
    dtype: str | None = None

    @property
    def coverage(self) -> float:
        """The share of the rows that were above the threshold."""
        return self.answered / self.rows

    @property
    def probability(self) -> float:
        """The threshold as a probability of the most likely class."""
        return float(0.5 + 0.5 * np.tanh(self.log_odds / 2))


@dataclass(frozen=True)
class Confidence:
    """What `confidence.json` holds: a temperature (one per class for a multi-label model), and a threshold."""

    temperature: float | list[float] | None = None
    threshold: Threshold | None = None

    @classmethod
    def read(cls, folder: Path) -> Confidence:
        """Reads a model's file; without one, there is neither.

        Raises:
            MethodMisfit: It was fitted on other files than those in the folder.
            NewerFormat, StorageError: A newer version of this package wrote it, or it is damaged or changed.
        """
        path = folder / CONFIDENCE_NAME
        if not path.is_file():
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            NewerFormat.check(path, data["format"], CONFIDENCE_FORMAT)
            threshold, written = data["threshold"], data.pop(_DIGEST, None)
            if threshold is not None:
                known = {f.name: threshold[f.name] for f in fields(Threshold)}
                threshold = Threshold(**{**known, "log_odds": float(known["log_odds"])})
            found = cls(data["temperature"], threshold)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is damaged ({error!r}). Fit the threshold or temperature again.") from error
        if written not in (None, _digest(data)):
            raise StorageError(
                f"{path} was changed after it was written, so its threshold would have no guarantee. Fit the threshold "
                f'or temperature again; to use the file as it is, delete its "{_DIGEST}".'
            )
        if data["model"] != model_digest(folder):
            raise MethodMisfit(
                f"{path} was fitted on other model files than those in its folder, so it says nothing of this model. "
                "Fit Calibrate and Abstain on this one, after pruning and quantization, or delete the file."
            )
        return found

    def write(self, folder: Path) -> None:
        """Writes the file, for the model in the folder as it is now."""
        threshold = None
        if self.threshold is not None:
            threshold = asdict(self.threshold) | {"log_odds": repr(float(self.threshold.log_odds))}  # JSON has no inf
        content = {
            "format": CONFIDENCE_FORMAT,
            "model": model_digest(folder),
            "temperature": self.temperature,
            "threshold": threshold,
        }
        write_file(folder / CONFIDENCE_NAME, json.dumps({**content, _DIGEST: _digest(content)}, indent=1))

    def usable_threshold(self, model: str, dtype: str | None) -> Threshold:
        """Returns the threshold of a model, called `model` in messages, that runs in `dtype`.

        Raises:
            MethodMisfit: There is none, or it was fitted in another data type.
        """
        if self.threshold is None:
            raise MethodMisfit(
                f"{model} has no threshold. Fit one on this model, after pruning and quantization: "
                "Abstain(name, model, inputs=..., labels=...)."
            )
        if self.threshold.dtype != dtype:
            raise MethodMisfit(
                f"The threshold of {model} was fitted with dtype={self.threshold.dtype}, and the model was loaded with "
                f"dtype={dtype}, which gives other answers. Load it with that one, or fit again."
            )
        return self.threshold

    @property
    def names(self) -> list[str]:
        """What there is of "temperature" and "threshold"."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def exported(self, opened_in: str | torch.dtype | None, computed_in: torch.dtype) -> Confidence:
        """Returns what holds for an export that computes in fp32 with the same weights.

        A threshold holds only if the model computed in fp32 too when it was fitted: rounding moves rows across it.

        Args:
            opened_in: The data type that the model was opened in; None for that of its files.
            computed_in: The data type of its weights then.
        """
        same = self.threshold is not None and self.threshold.dtype == dtype_name(opened_in)
        if self.threshold is None or not same or dtype_name(computed_in) != "float32":
            return replace(self, threshold=None)
        return replace(self, threshold=replace(self.threshold, dtype=None))

    def scaled(self, logits: Array) -> Array:
        """Returns logits divided by the temperature."""
        return logits if self.temperature is None else logits / np.asarray(self.temperature)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def model_digest(folder: Path) -> str:
    """Returns a digest of the files that decide a model's answers; publishing the model does not change it."""
    hasher = hashlib.blake2b(digest_size=16)
    for file in model_files(folder):
        path = file.relative_to(folder)
        if file.name == CONFIDENCE_NAME or file.suffix == ".md" or any(part.startswith(".") for part in path.parts):
            continue
        digest = file_digest(file)
        if file.name in ("config.json", "tokenizer_config.json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            for key in _ORIGIN_KEYS:
                content.pop(key, None)
            digest = json.dumps(content, sort_keys=True)
        hasher.update(f"{path.as_posix()}\0{digest}\0".encode())
    return hasher.hexdigest()
