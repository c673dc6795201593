"""Calls that were already paid for: as a labelled set, and as answers that are not paid again.

A team asks a large model what each software package is about, and its proxy logs every call. This script makes a
classifier of some hundred kilobytes from that log, without a request. Runs offline in under a minute; `--short` needs
less. The log is made here, from Debian's descriptions of its packages: labels that are right nine times out of ten
stand for the large model's. With a log of your own (of LiteLLM, Langfuse, OpenTelemetry or a provider's batches too),
leave `write_log` out.
"""

import argparse
import csv
import json
import random
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import CallLog, OpenAI
from datadreamer_like.stages import Compare
from datadreamer_like.steps import CallLogDataSource, CSVDataSource, Prompt
from datadreamer_like.trainers import TrainLinearClassifier

DATA = Path(__file__).parent / "data"
MODEL, OPTIONS = "gpt-4.1-mini", {"max_new_tokens": 8, "temperature": 0.0}
QUESTION = "What is this software about? Answer with one word.\n\n"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("output", nargs="?", default="from-call-logs-output")
parser.add_argument("--short", action="store_true", help="fewer calls in the log")
given = parser.parse_args()
CALLS = 600 if given.short else 3000


def write_log(file: Path) -> None:
    """Writes what a proxy in front of the API would have written: requests, responses, and lines of its own."""
    rows = list(csv.DictReader((DATA / "package_descriptions_train.csv").open(encoding="utf-8")))
    chosen = random.Random(1)
    topics = sorted({row["topic"] for row in rows})
    with file.open("w", encoding="utf-8") as log:
        log.write(json.dumps({"level": "info", "msg": "proxy started"}) + "\n")
        for number, row in enumerate(chosen.sample(rows, CALLS)):
            message = {"role": "user", "content": QUESTION + row["description"]}
            body = {"model": MODEL, "messages": [message], "max_tokens": 8, "temperature": 0}
            label = row["topic"] if chosen.random() < 0.9 else chosen.choice(topics)
            reply = {"message": {"role": "assistant", "content": label}, "finish_reason": "stop"}
            tokens = {"prompt_tokens": len(message["content"]) // 4, "completion_tokens": 1}
            response = {"status": 200, "body": {"model": MODEL, "choices": [reply], "usage": tokens}}
            if number % 50 == 0:
                response = {"status": 429, "body": {"error": {"message": "Rate limit reached."}}}
            log.write(json.dumps({"request": {"body": body}, "response": response}) + "\n")


log_file = Path(given.output) / "proxy-log.jsonl"
log_file.parent.mkdir(parents=True, exist_ok=True)
write_log(log_file)

with DataDreamer(Path(given.output) / "session"):
    paid = CallLogDataSource("Paid calls", data_files=log_file)
    answered = paid.filter(lambda row: row["error"] is None, name="Answered calls")
    labelled = answered.map(
        lambda row: {"description": row["prompt"].removeprefix(QUESTION), "label": row["answer"]}, name="Labelled rows"
    ).shuffle(seed=1)
    parts = labelled.select_columns(["description", "label"]).splits(train_size=0.9, validation_size=0.1)
    columns = [parts[name].output[column] for name in ("train", "validation") for column in ("description", "label")]
    student = TrainLinearClassifier("Student").train(*columns, C=10.0)

    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv").take(300)
    compared = Compare(
        "On the truth", [student], heldout.output["description"], heldout.output["topic"],
        repeats=1, latency_texts=8, throughput_texts=32, threads=1,
    )  # fmt: skip

    # The same prompts in a script: their answers are in the log, so that none is sent, with any key.
    llm = OpenAI(MODEL, api_key="not needed").reuse(CallLog(log_file))
    prompts = answered.take(200)
    again = Prompt("Ask again", inputs={"prompts": prompts.output["prompt"]}, args={"llm": llm, **OPTIONS})

calls, with_answer = len(list(paid.output["cost"])), len(list(answered.output["cost"]))
spent = sum(cost or 0.0 for cost in paid.output["cost"])
print(f"{calls:,} calls in the log, {with_answer:,} with an answer; they cost {spent:.2f} USD.")
print(compared)
print(f"Asked again: {len(list(again.output['prompts']))} prompts, {again.usage.requests} requests.")
