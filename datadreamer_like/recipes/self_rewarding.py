"""Self-rewarding: a language model judges its own answers and learns to prefer those it found best."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, check_number
from datadreamer_like.graph.output import Column
from datadreamer_like.models import LLM, Answer, HFTransformers, Rejected
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.steps import DataSource, Prompt, Step
from datadreamer_like.steps.prompting.answer_readers import read_number

from .parts import MakeTrainer, check_pair, check_recipe, check_trainer, count_rows, make_trainer, with_seed

logger = logging.getLogger("datadreamer_like")

JUDGE = """Review the response to the question below, and add points, one for each of these that it meets:
- it is relevant, and gives some of the information asked for;
- it addresses a large part of the question;
- it answers the basic elements of the question in a useful way;
- it is written as an assistant would, clear, organized, and answers the question directly and fully;
- it is of high quality: an expert's insight, with nothing superfluous.

Question: {prompt}

Response: {response}

Explain briefly, and conclude with the line "Score: <points>", from 0 to 5."""
"""The prompt of the judge: five additive points (after Yuan et al. 2024)."""

_COLUMNS = (
    TableColumn("iteration", "iteration"),
    TableColumn("candidates", "candidates", "", ",d"),
    TableColumn("judged", "judged", "", ",d"),
    TableColumn("score", "mean score", "", ".2f"),
    TableColumn("pairs", "pairs", "", ",d"),
    TableColumn("equal", "equal", "prompts", ",d"),
    TableColumn("margin", "margin", "points", ".2f"),
)
_IN_BRACKETS = re.compile(r"<(-?\d{1,9}(?:\.\d{1,9})?)>")  # as in the prompt's "<points>"
_PLACEHOLDER = re.compile(r"\{(prompt|response)\}")
_BEST = 5.0


class SelfRewarding:
    """Trains a language model by DPO on pairs of its own answers, as it judged them, and repeats with the new model.

    Yuan et al. 2024, arXiv:2401.10020. In each iteration the model writes several candidates for each prompt, and
    judges each of them several times, by points that add up to five; the scores are averaged. The best and the worst
    candidate of a prompt are a pair, unless their scores are equal. The next model is trained on the pairs, from the
    one that wrote them. The paper lets the model make the prompts too; here they are given, from `SelfInstruct` for
    example. A model of some hundred million parameters judges poorly: pass a `judge`.

    Args:
        name: Prefix of the names of all steps and trainers, which are cached nodes.
        model: The first model: a folder, a Hub id, a GGUF file, a trainer or stage. It should follow instructions.
        prompts: Column of prompts.
        trainer: A function of a name and `model_name` that makes an untrained trainer of preferences: `TrainHFDPO`, or
            `partial(TrainHFDPO, peft_config=...)`.
        iterations: How often to train.
        candidates: Candidates for each prompt.
        judgements: How often each candidate is judged.
        judge: Another LLM that judges, in all iterations; None for the model itself.
        judge_prompt: A text with the placeholders `{prompt}` and `{response}`, that asks for "Score: <points>".
        llm: Makes an LLM of a model, by default `HFTransformers`.
        validation_share: Share of the pairs that choose the best epoch.
        temperature, top_p: For candidates and judgements.
        max_new_tokens: For the candidates.
        judge_max_new_tokens: For the judge.
        seed: Of candidates, judgements and training.
        **options: Options of the trainer's `train`, such as `dpo_beta`.

    Attributes:
        students: The trained models, the last one is the result.
        pairs: For each iteration a step with `prompt`, `chosen`, `rejected`, `chosen_score` and `rejected_score`.
        iterations: For each iteration a dict of counts, see the table.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: An argument makes no sense.
        EmptyDataset, DataError: There are no prompts; the judge gave no score, or there are fewer than two pairs.
        DataDreamerError: See the trainer's `train`.

    Example:
        >>> taught = SelfRewarding(  # doctest: +SKIP
        ...     "Taught", "HuggingFaceTB/SmolLM2-135M-Instruct", prompts.output["prompt"], TrainHFDPO, judge=judge
        ... )
        >>> HFTransformers(taught.student).run(["Name three colours."])  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 1
    papers = ("2401.10020",)

    def __init__(
        self,
        name: str,
        model: Any,
        prompts: Column,
        trainer: MakeTrainer,
        *,
        iterations: int = 2,
        candidates: int = 4,
        judgements: int = 3,
        judge: LLM | None = None,
        judge_prompt: str = JUDGE,
        llm: Callable[[Any], LLM] = HFTransformers,
        validation_share: float = 0.1,
        temperature: float = 0.7,
        top_p: float = 0.9,
        max_new_tokens: int = 256,
        judge_max_new_tokens: int = 256,
        seed: int = 42,
        **options: Any,
    ) -> None:
        check_recipe(self, name, trainer)
        for what, number, least in (
            ("iterations", iterations, 1), ("candidates", candidates, 2), ("judgements", judgements, 1),
            ("seed", seed, 0), ("max_new_tokens", max_new_tokens, 1),
        ):  # fmt: skip
            check_number(number, f'"{name}": {what}', least, whole=True)
        check_number(temperature, f'"{name}": temperature', 0, over=True)
        check_number(validation_share, f'"{name}": validation_share', 0, 1, over=True)
        if not callable(llm):
            raise ArgumentTypeError(
                f'"{name}": llm must be a function of a model, such as HFTransformers, not {llm!r:.100}.'
            )
        if judge is not None and not isinstance(judge, LLM):
            raise ArgumentTypeError(f'"{name}": judge must be an LLM or None, not {judge!r:.100}.')
        if any(mark not in judge_prompt for mark in ("{prompt}", "{response}")):
            raise DefinitionError(f'"{name}": judge_prompt must have the placeholders {{prompt}} and {{response}}.')
        asked = list(check_pair(name, {"prompts": prompts})["prompts"])
        self.name, self._judge_prompt, self._share = name, judge_prompt, validation_share
        self.students: list[Any] = []
        self.pairs: list[Step] = []
        self.iterations: list[dict[str, Any]] = []
        check_trainer(self, trainer, f"{name}, iteration 1", options, model_name=model)
        for number in range(1, iterations + 1):
            writer = llm(model)
            written = self._written(
                number, prompts, writer, n=candidates, temperature=temperature, top_p=top_p,
                max_new_tokens=max_new_tokens, seed=seed + number,
            )  # fmt: skip
            how = {
                "n": judgements, "max_new_tokens": judge_max_new_tokens, "seed": seed + number,
                "temperature": temperature, "top_p": top_p,
            }  # fmt: skip
            scores = self._judged(number, asked, written, judge or writer, how)
            self.pairs.append(self._paired(number, asked, written, scores))
            writer.unload_model()
            student = make_trainer(trainer, f"{name}, iteration {number}", model_name=model)
            student.train(*self._columns(), **with_seed(student, {"seed": seed, **options}, number))
            self.students.append(student)
            model = student
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name, model and trainer, for tests; columns are lists."""
        return {"prompts": ["the cat", "the dog", "a tree"], "iterations": 1, "candidates": 2, "judgements": 1}

    def _written(self, number: int, prompts: Column, writer: LLM, **how: Any) -> list[list[str]]:
        """The different candidates of each prompt."""
        said = Prompt(f"{self.name}, candidates {number}", {"prompts": prompts}, {"llm": writer, **how})
        return [
            [*dict.fromkeys(text.strip() for text in texts or () if text and text.strip())]
            for texts in said.output["generations"]
        ]

    def _judged(
        self, number: int, prompts: Sequence[str], written: Sequence[Sequence[str]], judge: LLM, how: dict[str, Any]
    ) -> list[list[float | None]]:
        """The mean score of each candidate; None where no judgement could be read, or a preview did not ask for one."""
        questions = [
            _filled(self._judge_prompt, prompt=prompt, response=text)
            for prompt, texts in zip(prompts, written, strict=True)
            for text in texts
        ]
        if not questions:
            raise DataError(f'"{self.name}": iteration {number} has no candidates: the model answered no prompt.')
        source = DataSource(f"{self.name}, questions {number}", {"question": questions})
        args = {"llm": judge, "parse": _score, "max_follow_ups": 0, **how}
        said = Prompt(f"{self.name}, judgements {number}", {"prompts": source.output["question"]}, args)
        means: list[float | None] = []
        for found in said.output["generations"]:
            points = [each for each in (found if isinstance(found, list) else [found]) if each is not None]
            means.append(sum(points) / len(points) if points else None)
        judged = [mean for mean in means if mean is not None]
        if not judged:
            raise DataError(
                f'"{self.name}": iteration {number}: the judge gave no score to any of {len(means):,} candidates; '
                f'expected a line such as "Score: 3", from 0 to 5. See the errors of the step "{said.name}", and pass '
                "another judge or judge_prompt."
            )
        facts = {"candidates": len(means), "judged": len(judged), "score": math.fsum(judged) / len(judged)}
        self.iterations.append({"iteration": number, **facts})
        line = iter(means)
        return [[next(line, None) for _ in texts] for texts in written]

    def _paired(
        self,
        number: int,
        prompts: Sequence[str],
        written: Sequence[Sequence[str]],
        scores: Sequence[Sequence[float | None]],
    ) -> Step:
        """The best and the worst candidate of each prompt, of equal ones the first."""
        names = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
        rows, equal = [], 0
        for prompt, texts, points in zip(prompts, written, scores, strict=True):
            known = [(score, text) for score, text in zip(points, texts, strict=True) if score is not None]
            if len(known) < 2 or min(known)[0] == max(known)[0]:
                equal += 1
                continue
            best, worst = max(known, key=lambda each: each[0]), min(known, key=lambda each: each[0])
            rows.append((prompt, best[1], worst[1], best[0], worst[0]))
        if len(rows) < 2:
            raise DataError(
                f'"{self.name}": iteration {number}: of {len(prompts):,} prompts, {len(rows)} have candidates with '
                "different scores; training needs two or more. Pass more prompts (in a preview, more rows), candidates "
                "or judgements, or a judge that tells answers apart."
            )
        margin = math.fsum(row[3] - row[4] for row in rows) / len(rows)
        self.iterations[-1] |= {"pairs": len(rows), "equal": equal, "margin": margin}
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        return DataSource(f"{self.name}, pairs {number}", columns)

    def _columns(self) -> list[Column]:
        """The six columns of the training on the last pairs."""
        rows = self.pairs[-1]
        count = count_rows(rows)
        held = min(count - 1, max(1, round(count * self._share)))
        parts = rows.splits(train_size=count - held, validation_size=held)
        return [
            parts[part].output[name] for part in ("train", "validation") for name in ("prompt", "chosen", "rejected")
        ]

    @property
    def student(self) -> Any:
        """The last model."""
        return self.students[-1]

    @property
    def table(self) -> Table:
        """What each iteration wrote, judged and paired."""
        return Table(_COLUMNS, self.iterations, title=self.name)

    def __str__(self) -> str:
        return str(self.table)


def _filled(template: str, **values: str) -> str:
    """The template with its placeholders replaced once; those within values stay."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def _score(answer: Answer, row: dict[str, Any]) -> Any:
    """The points of a judgement: those of the whole text, or else of its last line."""
    text = _IN_BRACKETS.sub(r"\1", answer.text or "").strip()
    points = read_number(text)
    if points is None and "\n" in text:
        points = read_number(text.splitlines()[-1])
    if points is None:
        return Rejected('There is no score. Conclude with a line such as "Score: 3".')
    return points if 0 <= points <= _BEST else Rejected(f"The score is {points:g}; expected 0 to 5.")
