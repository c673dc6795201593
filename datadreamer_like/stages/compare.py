"""The stage that compares models on the same rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number, did_you_mean
from datadreamer_like.evaluation.abstention import rows_needed
from datadreamer_like.evaluation.columns import check_column, check_lengths
from datadreamer_like.evaluation.costs import size_of, time_in_turn
from datadreamer_like.evaluation.judge import NAMES, Further, Judge
from datadreamer_like.evaluation.judges.choice import judge_for
from datadreamer_like.graph import Node
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import only_known
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.exports.report import Runtime
from datadreamer_like.models.llms.chat_template import AUTO, AutoText, checked
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained.trained_model import loaded
from datadreamer_like.report import Interval, Table, frame
from datadreamer_like.storage.shown import clean
from datadreamer_like.storage.tables import TableWriter, open_table

from .comparison import HTML_NAME, PNG_NAME, Comparison, Measured, unique
from .preference import preference
from .runtimes import check_runtimes, exported, with_runtime
from .stage import Stage, model_argument, origins

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from datasets import Dataset

_PREDICTIONS, _GENERATIONS = "predictions", "generations"


class Compare(Stage):
    """Compares models on the same rows: quality, size, latency and throughput.

    Classifiers (one label per text) are scored by accuracy, macro-F1 and the calibration of their probabilities, with
    labels matched by name; with `max_error` also by the share of rows that they can answer within that bound, and with
    a `teacher` by the agreement with it. Language models, causal or encoder-decoder, are scored by the likelihood of
    the answers to prompts: bits per byte, which can be compared between tokenizers, and loss and perplexity per token,
    which cannot (see `LanguageJudge`); with `rejected` also by how often they find the better of two answers likelier,
    and with `generate` by the answers that they write.
    The main score has a 95 % interval for the paired difference to the baseline (see `evaluation.quality`).

    Size is the number of weights, and the bytes of the files that are needed to run the model: weights, config and
    tokenizer. Latency is the time for a single row, throughput the rate for rows in batches, from text to answer; for
    a language model, from text to the loss of the answer, in one forward pass. The models take turns, in another order
    each round, with a fixed number of threads, after a warm-up that is not counted. Latency is the median, with
    quartiles, over the rows, each in its fastest round; throughput the median over the rounds.

    The scores, the answers to each row, an HTML page and a plot are saved in the node's folder; a rerun reads them
    without loading a model; all figures are in `comparison`. Times depend on the machine: pass `force=True` to measure
    again.

    Args:
        models: Trainers, stages, `TrainedModel`s, folders or ids on the Hub.
        inputs: Column of texts or prompts that none of the models was trained on.
        labels: Column of their labels or answers. None scores causal language models on the texts of `inputs`.
        names: Display names of the models; None for the names of their nodes or folders.
        baseline: The model that the others are compared with: one of `models`, or its display name. None for the
            first.
        batch_size: Rows in a batch, for quality and throughput.
        max_length: Maximum number of tokens per row; None for each model's own limit. Texts to classify are cut there;
            a prompt with its answer that is too long for one of the models is left out for all.
        chat_prompt_template: The prompt template of language models, see `TrainHFFineTune`; AUTO for each tokenizer's
            own chat template, with which its model was trained.
        system_prompt: The system prompt for language models; AUTO for the template's own.
        repeats, threads: Rounds and CPU threads of timing; None for torch's current setting of threads.
        latency_texts, throughput_texts: Number of rows timed one at a time, and in batches.
        resamples, seed: Number of bootstrap resamples, and their seed.
        teacher: For classifiers: the model to agree with, a trainer, stage, `TrainedModel`, folder or Hub id.
        max_error, confidence: For classifiers: the bound on wrong answers at which the coverage is measured, and the
            probability that it holds; see `evaluation.fit_threshold`. None for no coverage.
        rejected: For language models: column of worse answers than `labels`.
        generate: For language models: number of rows, evenly spread, whose answers are generated, by greedy decoding.
        max_new_tokens: Maximum number of tokens in a generated answer.
        judge: For language models: who compares their generated answers with the baseline's, for a win rate. An LLM,
            asked with either answer first (what wins in one order only is a tie); a trained `TrainHFRewardModel`; or a
            function of a prompt and two answers, the model's and the baseline's, that returns "a", "b" or "tie".
        runtimes: Where each model runs: "torch" and "onnx", for ONNX Runtime on a CPU. A classifier is exported to ONNX
            for the time of the work, in fp32, or in the bits in which it is quantized: 8 or 4, others are refused.
        device: Device for all models, such as "cuda"; None for each model's own.
        keep_loaded: Keep all models in memory until the end. With False each is loaded for its turn, which takes
            longer but does not change the measured times.

    Raises:
        SessionError: There is no session.
        NotTrained: One of the models is a trainer that was not trained yet.
        MethodMisfit: The models have different tasks, or one that cannot be compared.
        LabelError: A label of the rows is not one of a model's classes; raised before any model is run.
        DataError: A value is missing, or no row fits all the models.
        DefinitionError, ArgumentTypeError, EmptyDataset: An option makes no sense, or the columns do not fit together.

    Example:
        >>> compared = Compare(  # doctest: +SKIP
        ...     "What each stage cost", models=[teacher, student, slim, small],
        ...     inputs=held_out.output["text"], labels=held_out.output["topic"],
        ... )
        >>> print(compared)  # doctest: +SKIP
    """

    result_version = 2

    @classmethod
    def example(cls, model: object) -> dict[str, Any]:
        """Returns the smallest arguments; see `Stage.example`."""
        options = {"repeats": 1, "latency_texts": 1, "throughput_texts": 2, "resamples": 10}
        return {"models": [model, model], "inputs": ["a cat", "a dog"], "labels": ["cat", "dog"], **options}

    @only_known
    def __init__(
        self,
        name: str,
        models: Sequence[object],
        inputs: Column,
        labels: Column | None = None,
        *,
        names: Sequence[str] | None = None,
        baseline: object | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        chat_prompt_template: AutoText = AUTO,
        system_prompt: AutoText = AUTO,
        repeats: int = 5,
        threads: int | None = None,
        latency_texts: int = 32,
        throughput_texts: int = 128,
        resamples: int = 10_000,
        seed: int = 0,
        teacher: object | None = None,
        max_error: float | None = None,
        confidence: float = 0.95,
        rejected: Column | None = None,
        generate: int = 0,
        max_new_tokens: int = 64,
        judge: object | None = None,
        runtimes: Sequence[Runtime] = ("torch",),
        device: str | int | torch.device | None = None,
        keep_loaded: bool = True,
        force: bool = False,
        progress_interval: float | None = 60,
    ) -> None:
        super().__init__(name, force=force, progress_interval=progress_interval)
        if isinstance(models, str | Path) or not isinstance(models, Sequence):
            raise ArgumentTypeError(f'"{self.name}": models must be a list of models, not {type(models).__name__}.')
        if not models:
            raise DefinitionError(f'"{self.name}": models is empty. Pass at least one.')
        self.runtimes = check_runtimes(runtimes, f'"{self.name}"')
        self.models = [
            model_argument(model, f'"{self.name}": models[{index}]', device) for index, model in enumerate(models)
        ]
        self.names = self._names(names)
        self.baseline = self._baseline(baseline, models)
        if self.runtimes != ("torch",):
            self._on_runtimes()
        self.inputs = check_column(inputs, f'"{self.name}": inputs')
        self.labels = None if labels is None else check_column(labels, f'"{self.name}": labels')
        self.rejected = None if rejected is None else check_column(rejected, f'"{self.name}": rejected')
        columns = {"inputs": self.inputs, "labels": self.labels, "rejected": self.rejected}
        check_lengths({name: column for name, column in columns.items() if column is not None})
        self.teacher = None if teacher is None else model_argument(teacher, f'"{self.name}": teacher', device)
        self.max_error, self.confidence = max_error, confidence
        self.generate, self.max_new_tokens = generate, max_new_tokens
        self.judge = judge
        self._prefer = None if judge is None else preference(judge, f'"{self.name}": judge')
        if judge is not None and (not generate or len(self.models) < 2):
            raise DefinitionError(
                f'"{self.name}": judge compares answers that two models generate. Pass generate=, a number of rows, '
                "and at least two models."
            )
        if max_error is not None:
            rows_needed(max_error, confidence)
        check_number(generate, f'"{self.name}": generate', 0, whole=True)
        check_number(max_new_tokens, f'"{self.name}": max_new_tokens', 1, whole=True)
        self.chat_prompt_template = checked("chat_prompt_template", chat_prompt_template)
        self.system_prompt = checked("system_prompt", system_prompt)
        self.batch_size, self.max_length, self.repeats, self.threads = batch_size, max_length, repeats, threads
        self.latency_texts, self.throughput_texts = latency_texts, throughput_texts
        self.resamples, self.seed, self.keep_loaded = resamples, seed, keep_loaded
        for option in ("batch_size", "repeats", "threads", "latency_texts", "throughput_texts", "resamples"):
            what = f'"{self.name}": {option}'
            check_number(getattr(self, option), what, 1, whole=True, optional=option == "threads")
        taught = [] if self.teacher is None else [self.teacher]
        self.parents = origins([*self.models, *taught], columns.values())
        if isinstance(judge, Node) and judge not in self.parents:
            self.parents.append(judge)
        self.find_or_make()
        self.comparison = Comparison.read(self.result_folder)
        if self.comparison.names != self.names:
            # Renaming a model's node changes the display names only.
            self.comparison = replace(self.comparison, names=self.names)
            self.revise(lambda draft: self.comparison.write(draft, self.name))

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of everything that determines the result, by name."""
        parts = class_part(type(self))
        for index, model in enumerate(self.models):
            parts[f"model {index + 1}"] = fingerprint(model, f"models[{index}]")
            parts[f"device of model {index + 1}"] = fingerprint(str(model.device))
        for option in (
            "baseline", "batch_size", "max_length", "chat_prompt_template", "system_prompt", "repeats", "threads",
            "latency_texts", "throughput_texts", "resamples", "seed", "max_error", "confidence", "generate",
            "max_new_tokens",
        ):  # fmt: skip
            parts[f"argument {option}"] = fingerprint(getattr(self, option), option)
        parts["teacher"] = fingerprint(self.teacher, "teacher")
        if self.judge is not None:
            parts["argument judge"] = fingerprint(self.judge, "judge")
        if self.runtimes != ("torch",):
            parts["argument runtimes"] = fingerprint(self.runtimes, "runtimes")
        return parts | {f"input {name}": fingerprint(getattr(self, name), name) for name in (*NAMES, "rejected")}

    # The result

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All figures, one dict per model, in base units (seconds, bytes, shares)."""
        return self.comparison.records()

    @property
    def table(self) -> Table:
        """The figures as a formatted table."""
        return self.comparison.table(self.name)

    def to_pandas(self) -> pd.DataFrame:
        """Returns the figures in base units; each interval becomes three columns."""
        return frame(self.rows)

    @property
    def predictions(self) -> Dataset:
        """Each model's answers: columns `text`, `label` if there are any, and one per model.

        A classifier's column has labels, a language model's the loss of the answer in nats, summed over its tokens.
        """
        return self._open(_PREDICTIONS)

    @property
    def generations(self) -> Dataset:
        """The answers that language models generated: columns as in `predictions`; None for the other rows.

        Raises:
            DefinitionError: None were generated.
        """
        if not self.generate:
            raise DefinitionError(f'"{self.name}" generated no answers. Pass generate=, a number of rows.')
        return self._open(_GENERATIONS)

    @property
    def html_path(self) -> Path:
        """The self-contained HTML page with table and plot."""
        return self.result_folder / HTML_NAME

    @property
    def plot_path(self) -> Path | None:
        """The plot as a PNG file; None if matplotlib was not installed."""
        path = self.result_folder / PNG_NAME
        return path if path.exists() else None

    def __str__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table.to_fragment()

    # The work

    def build(self, draft: Path) -> Kept:
        """Measures the models."""
        with quiet(), ExitStack() as stack:
            self.usage.note = "exporting"
            ready = [stack.enter_context(exported(model)) for model in self.models]
            models = dict(zip(self.names, ready, strict=True))
            judge = judge_for(models)(
                self.inputs, self.labels, models, self.max_length, self.chat_prompt_template, self.system_prompt,
                self.resamples, self.seed, self.teacher, self.max_error, self.confidence, self.rejected, self.generate,
                self.max_new_tokens, self._prefer,
            )  # fmt: skip
            for name, model in models.items():
                self.usage.note = f"loading {name}"
                if self.keep_loaded:
                    stack.enter_context(loaded(model))
            return self._measure(draft, judge)

    def _measure(self, draft: Path, judge: Judge) -> Kept:
        import torch

        self.usage.total_rows = len(judge.rows) * len(self.models)
        answers, sizes = [], []
        further: list[Further] = []
        portion = 8 * self.batch_size  # sorted by length and reported together
        for name, model in judge.models.items():
            self.usage.note = f"running {name}"
            said: list[Any] = []
            with loaded(model):
                sizes.append(size_of(model.model))
                for start in range(0, len(judge.rows), portion):
                    part = judge.rows[start : start + portion]
                    said += judge.answers(model, part, self.batch_size)
                    self.usage.add(rows=len(part))
                self.usage.note = f"scoring {name}"
                further.append(judge.further(model, said, self.batch_size))
            answers.append(said)
        threads = torch.get_num_threads() if self.threads is None else self.threads
        timings = time_in_turn(
            judge, latency_rows=self.latency_texts, throughput_rows=self.throughput_texts, rounds=self.repeats,
            batch_size=self.batch_size, threads=threads,
        )  # fmt: skip
        measured: list[Measured] = []
        for (name, model), said, size, more in zip(judge.models.items(), answers, sizes, further, strict=True):
            differences: dict[str, Interval] = {}
            preferred: Interval | None = None
            if len(measured) != self.baseline:
                self.usage.note = f"comparing {name} with {self.names[self.baseline]}"
                preferred = judge.preferred(further[self.baseline].texts, more.texts)
                differences = judge.differences(answers[self.baseline], said)
            folders = [part.path for part in getattr(model, "members", [model])]
            on_disk = model.bytes_on_disk if all(map(os.path.isdir, folders)) else None
            timing = timings[name]
            measured.append(
                Measured(
                    {**judge.quality(said), **more.scores}, differences, size.parameters, size.nonzero, on_disk,
                    timing.latency, timing.throughput, timing.seconds, timing.rates, preferred,
                )
            )  # fmt: skip
        self.usage.note = "drawing"
        comparison = Comparison(
            judge.kind, measured, len(judge.rows), dict(judge.facts), rounds=self.repeats, threads=threads,
            batch_size=self.batch_size, max_length=self.max_length, torch_version=torch.__version__,
            devices=[str(model.device or "cpu") for model in self.models], names=self.names, baseline=self.baseline,
        )  # fmt: skip
        comparison.write(draft, self.name)
        self._save(draft / _PREDICTIONS, judge, [judge.kept(said) for said in answers])
        if any(more.texts for more in further):
            self._save(draft / _GENERATIONS, judge, [list(more.texts) for more in further])
        self.card.facts |= {"Rows compared": f"{len(judge.rows):,}", "Models compared": f"{len(self.models)}"}
        return self.kept()

    def _save(self, folder: Path, judge: Judge, by_model: list[list[Any]]) -> None:
        folder.mkdir()
        table = TableWriter(folder, what=f'"{self.name}"')
        table.write({**judge.columns, **{f"model_{index + 1}": values for index, values in enumerate(by_model)}})
        table.close(self.fingerprint)

    def _open(self, name: str) -> Dataset:
        columns = {f"model_{index + 1}": model for index, model in enumerate(self.comparison.names)}
        return open_table(self.result_folder / name).rename_columns(columns)

    def _names(self, names: Sequence[str] | None) -> list[str]:
        if names is None:
            names = [Path(model.path).name if model.node is None else model.node.name for model in self.models]
        if len(names) != len(self.models):
            raise DefinitionError(
                f'"{self.name}": there are {len(self.models)} models and {len(names)} names. Pass one name per model.'
            )
        return unique([clean(str(name)) for name in names])

    def _on_runtimes(self) -> None:
        """Puts each model in the list once for each runtime."""
        pairs = [(each, place) for each in zip(self.models, self.names, strict=True) for place in self.runtimes]
        what = f'"{self.name}": runtimes'
        self.models = [with_runtime(model, place, what) for (model, _), place in pairs]
        self.names = unique([name if place == "torch" else f"{name} ({place})" for (_, name), place in pairs])
        self.baseline *= len(self.runtimes)

    def _baseline(self, baseline: object | None, models: Sequence[object]) -> int:
        """Index of the model that the others are compared with."""
        if baseline is None:
            return 0
        for index, model in enumerate(models):
            if baseline is model or baseline is self.models[index]:
                return index
        if not isinstance(baseline, str | Path):
            raise DefinitionError(f'"{self.name}": baseline is {baseline!r}, which is not in models. Add it there.')
        for index, name in enumerate(self.names):
            if baseline == name or str(baseline) == str(models[index]):
                return index
        offered = ", ".join(f'"{name}"' for name in self.names)
        raise DefinitionError(
            f'"{self.name}": no model is called "{baseline}" (baseline); the models are {offered}.'
            + did_you_mean(str(baseline), self.names)
        )
