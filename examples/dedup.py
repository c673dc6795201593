"""Cleaning a dataset: what is in it twice, in the test set, not valid or labelled wrongly, and splits that do not leak.

Runs offline in under three minutes. The rows are descriptions of Debian packages. As synthetic data would, each of some
seeds gets copies that differ in a word or in case, and some rows of the test set slip in. Each step keeps the rows that
pass, and has the others, with the reason, as `step.rejected`. The last line shows how many seeds would have had
copies on both sides of a split without `group_by`.

    python examples/dedup.py [OUTPUT FOLDER] [--short]
"""

import random
import sys
from pathlib import Path

from datadreamer_like import DataDreamer, concat
from datadreamer_like.steps import (
    Balance,
    CSVDataSource,
    Decontaminate,
    Deduplicate,
    DeduplicateByMinHash,
    FindLabelErrors,
    InLanguage,
    LengthBetween,
    NoPII,
    ReviewFile,
    Validate,
)

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "dedup-output")
ROWS = 200 if SHORT else 1500
COLUMNS = ["package", "description", "topic"]


def copies(batch):
    """Makes three copies of each description: the same, in capitals, and with one word left out."""
    found = {name: [] for name in COLUMNS}
    for package, text, topic in zip(*(batch[name] for name in COLUMNS), strict=True):
        words = text.split()
        dropped = random.Random(text).randrange(len(words))
        found["description"] += [text, text.upper(), " ".join(words[:dropped] + words[dropped + 1 :])]
        found["package"] += [package] * 3
        found["topic"] += [topic] * 3
    return found


with DataDreamer(FOLDER):
    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_train.csv").select_columns(COLUMNS)
    seeds = source.shuffle(seed=1).take(ROWS).save(name="Seeds")
    test = CSVDataSource("Test set", data_files=DATA / "package_descriptions_heldout.csv").select_columns(COLUMNS)
    grown = seeds.take(ROWS // 5).map(copies, batched=True, batch_size=1).save(name="Grown")
    rows = concat(seeds, grown, test.take(ROWS // 20), name="All rows", lazy=False)

    valid = Validate(
        "Valid",
        inputs={"inputs": rows.output["description"]},
        args={"validators": [LengthBetween(8, 80, "words"), InLanguage("en"), NoPII()]},
    )
    clean = Decontaminate(
        "Not in the test set",
        inputs={"inputs": valid.output["description"], "against": test.output["description"]},
    )
    once = Deduplicate("Once", inputs={"inputs": clean.output["description"]})
    unique = DeduplicateByMinHash(
        "Unlike one another", inputs={"inputs": once.output["description"]}, args={"threshold": 0.6}
    )
    common = unique.filter(lambda row: row["topic"] in ("games", "math", "net", "science", "sound")).save(name="Common")
    even = Balance("As many of each topic", inputs={"inputs": common.output["topic"]})
    suspects = FindLabelErrors(
        "Label suspects", inputs={"inputs": common.output["description"], "labels": common.output["topic"]}
    )
    review = ReviewFile(
        "For a person",
        inputs={"inputs": suspects.rejected.output["description"]},
        args={"file": Path(FOLDER) / "review.csv", "show": ["topic", "suggested_label"], "labels": ["right", "wrong"]},
    )

    print("\nStep                     rows in   kept  the first that was rejected, and why")
    for step, given in ((valid, rows), (clean, valid), (once, clean), (unique, once)):
        text = next(iter(step.rejected.output), {"description": "", "reason": ""})
        shown = f"{text['description'][:40]!r}: {text['reason']}"
        print(f"{step.name:<24} {len(given.output):>7} {len(step.output):>6}  {shown}")
    print(f"{even.name}: {even.card.facts['Distribution']}")
    print(f"{len(suspects.rejected.output)} label suspects; {review.num_unreviewed} of them wait in review.csv")

    def leaks(parts):
        """Counts the seeds that have rows in both splits."""
        packages = [{*part.output["package"]} for part in parts.values()]
        return len(packages[0] & packages[1])

    mixed = concat(seeds, grown, name="Seeds and grown", lazy=False)
    plain = mixed.splits(train_size=0.8, test_size=0.2, name="Plain split")
    grouped = mixed.splits(train_size=0.8, test_size=0.2, group_by=seeds, name="Split by seed")
    print(f"Seeds with rows in both splits: {leaks(plain)} without group_by, {leaks(grouped)} with group_by=seeds")
