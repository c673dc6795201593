"""What a teacher costs once its signals are stored: time of an epoch, memory, teacher runs and bytes a token.

Run: python benchmarks/stored_teacher.py [--quality]
The models are Llamas of 2 to 9 million parameters with a vocabulary of 8,192, trained on package titles and their
descriptions. With `--quality`, students of five seeds are taught by stored signals and by the live teacher's full
logits, and their cross-entropies on other rows are compared in pairs: for this teacher, whose distributions are flat,
and for one that has learned sentences of few forms. Exits with 1 if a bar is missed.
"""

import argparse
import csv
import gc
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from transformers.utils import logging

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Sampled, SoftTargets, StoredTeacher, TopK
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.steps import DataSource
from datadreamer_like.trainers import TrainHFFineTune

DATA = Path(__file__).parents[1] / "examples" / "data"
VOCABULARY = 8_192
SIZES = {"teacher": (384, 4), "small": (128, 2), "larger": (192, 3)}
OPTIONS: dict[str, Any] = {"batch_size": 16, "max_length": 64, "learning_rate": 2e-3, "chat_prompt_template": None}
SLOWEST, MOST_BYTES = 1.15, 120
KINDS = "library plugin wrapper parser client server framework toolkit driver module"
TOPICS = "data images text audio maps money graphs games robots weather"
LANGUAGES = "Python Rust Java Go C Perl Ruby Lua Haskell Scala"
T_95 = {4: 2.776}  # two-sided 95 % of Student's t, by degrees of freedom


class Watch(TrainerCallback):  # type: ignore[misc]
    """Processor time of each epoch, and the number of models in memory while it trains."""

    epochs: list[float] = []
    loaded = 0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        Watch.started = time.process_time()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        Watch.epochs.append(time.process_time() - Watch.started)
        Watch.loaded = sum(type(each) is LlamaForCausalLM for each in gc.get_objects())


class Calls:
    """Counts the forward passes of the teacher, which is known by its size."""

    def __init__(self) -> None:
        self.count, forward = 0, LlamaForCausalLM.forward

        def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
            self.count += model.config.hidden_size == SIZES["teacher"][0]
            return forward(model, *args, **kwargs)

        LlamaForCausalLM.forward = counted


def read(name: str, count: int) -> list[dict[str, str]]:
    with (DATA / f"package_descriptions_{name}.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row, _ in zip(csv.DictReader(stream), range(count), strict=False)]


def regular(titles: list[dict[str, str]]) -> list[dict[str, str]]:
    """Titles with descriptions of one form: what follows is mostly certain, or one of ten words."""
    draw = random.Random(0)

    def one_of(words: str) -> str:
        return words.split()[min(int(draw.expovariate(0.5)), 9)]

    return [
        {
            "title": row["title"],
            "description": f"This is a small {one_of(KINDS)} for working with {one_of(TOPICS)}, written in "
            f"{one_of(LANGUAGES)} and made to be used by the people who need it.",
        }
        for row in titles
    ]


def make_models(folder: Path, texts: list[str]) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=128
    )
    for name, (hidden, layers) in SIZES.items():
        transformers.set_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
            num_attention_heads=hidden // 32, max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


class Bench:
    """One session with columns and models."""

    made = 0

    def __init__(self, folder: Path, rows: int, of_one_form: bool = False) -> None:
        self.folder, self.name = folder, "regular" if of_one_form else "flat"
        train, validation = read("train", rows), read("heldout", 100)
        if of_one_form:
            train, validation = regular(train), regular(validation)
        if not (folder / "teacher").exists():
            make_models(folder, [f"{row['title']} {row['description']}" for row in read("train", sys.maxsize)])
        self.columns = {}
        for split, data in (("train", train), ("validation", validation)):
            output = DataSource(f"{split} {self.name}", data=data).output
            self.columns |= {f"{split}_input": output["title"], f"{split}_output": output["description"]}

    def train(self, size: str, objective: Any = None, **more: Any) -> TrainHFFineTune:
        options = {**OPTIONS, **more}
        template = options.pop("chat_prompt_template")
        Bench.made += 1
        trainer = TrainHFFineTune(
            f"{size} {Bench.made}", str(self.folder / size), chat_prompt_template=template, force=True
        )
        return trainer.train(**self.columns, objective=objective, callbacks=[Watch()], **options)

    def teacher(self, epochs: float) -> TrainedModel:
        return TrainedModel.load(self.train("teacher", epochs=epochs).model_path)


def epoch_of(bench: Bench, objective: Any, size: str = "larger") -> float:
    """Processor seconds of the faster of two epochs."""
    Watch.epochs.clear()
    bench.train(size, objective, epochs=2)
    return min(Watch.epochs)


def time_epochs(bench: Bench, teacher: TrainedModel) -> list[str]:
    sampled, top = (StoredTeacher(teacher, signals) for signals in (Sampled(16), TopK(16)))
    plain, live = "no teacher", "live"
    objectives = {
        plain: None,
        "stored": SoftTargets(sampled, alpha=1.0),
        "stored and labels": SoftTargets(sampled, alpha=0.5),
        "stored and labels, T = 1": SoftTargets(sampled, temperature=1.0, alpha=0.5),
        "16 likeliest": SoftTargets(top, alpha=1.0),
        "16 likeliest and labels": SoftTargets(top, alpha=0.5),
        live: SoftTargets(teacher, alpha=1.0),
    }
    times: dict[str, list[float]] = {name: [] for name in objectives}
    loaded = {}
    for turn in range(2):
        for name, objective in objectives.items():
            if turn and name == live:
                continue
            times[name].append(epoch_of(bench, objective))
            loaded[name] = Watch.loaded
            teacher.unload_model()
    print("an epoch, in processor time:")
    missed = []
    for name, found in times.items():
        ratio = min(found) / min(times[plain])
        print(f"  {name}: {min(found):.1f} s, {ratio:.2f} of no teacher's; models in memory: {loaded[name]}")
        if name != live and (ratio > SLOWEST or loaded[name] > 1):
            missed.append(f"{name}: {ratio:.2f} of the time, {loaded[name]} models in memory")
    return missed


def count_runs(bench: Bench, teacher: TrainedModel, calls: Calls) -> list[str]:
    objective = SoftTargets(StoredTeacher(teacher, Sampled(16)), alpha=1.0)
    runs = []
    for size in ("small", "larger"):
        for seed in (1, 2):
            before = calls.count
            student = bench.train(size, objective, epochs=1, seed=seed)
            runs.append(calls.count - before)
    print(f"teacher forward passes for four students of two sizes: {' + '.join(map(str, runs))}")
    fact = student.card.facts["Stored Teacher"]
    print(f"stored: {fact}")
    size = int(fact.split(" bytes a token")[0].split()[-1])
    missed = [f"{size} bytes a token"] if size > MOST_BYTES else []
    return missed + (["the teacher ran again"] if sum(runs[1:]) or not runs[0] else [])


def compare_quality(bench: Bench, teacher: TrainedModel, seeds: int = 5) -> list[str]:
    """The bar is for the default signals; the others are printed."""
    stored = {"Sampled(16)": Sampled(16), "TopK(16)": TopK(16)}
    teachers = {"live": teacher, **{name: StoredTeacher(teacher, signals) for name, signals in stored.items()}}
    found: dict[str, list[float]] = {name: [] for name in teachers}
    for seed in range(seeds):
        for name, each in teachers.items():
            student = bench.train("small", SoftTargets(each, temperature=1.0, alpha=1.0), epochs=4, seed=seed)
            found[name].append(student.metrics["cross_entropy"])
    print(f"the {bench.name} teacher; {seeds} students each, nats a token on other rows:")
    print(f"  live: {statistics.mean(found['live']):.3f}")
    missed = []
    for name in stored:
        differences = [ours - live for ours, live in zip(found[name], found["live"], strict=True)]
        mean, half = statistics.mean(differences), T_95[seeds - 1] * statistics.stdev(differences) / math.sqrt(seeds)
        print(f"  {name} minus live: {mean:+.4f} ± {half:.4f} (95 %)")
        if name == "Sampled(16)" and mean - half > 0:
            missed.append(f"{name} teaches worse by {mean:.4f} ± {half:.4f}, {bench.name} teacher")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", action="store_true", help="compare students of five seeds too (15 minutes)")
    parser.add_argument("--rows", type=int, default=240)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    calls = Calls()
    with tempfile.TemporaryDirectory() as folder, DataDreamer(Path(folder) / "output", verbose=False):
        bench = Bench(Path(folder), arguments.rows)
        teacher = bench.teacher(epochs=4 if arguments.quality else 1)
        missed = count_runs(bench, teacher, calls) + time_epochs(bench, teacher)
        if arguments.quality:
            missed += compare_quality(bench, teacher)
            other = Bench(Path(folder), arguments.rows, of_one_form=True)
            missed += compare_quality(other, other.teacher(epochs=5))
    for bar in missed:
        print(f"MISSED: {bar}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
