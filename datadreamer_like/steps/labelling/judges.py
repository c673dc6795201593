"""A panel of LLM judges of pairs, asked in both orders and calibrated on pairs whose winner is known."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset
from datadreamer_like.evaluation.agreement import cohens_kappa, exact_interval
from datadreamer_like.evaluation.columns import check_lengths
from datadreamer_like.evaluation.label_model import Floats, fit_to_codes
from datadreamer_like.evaluation.votes import ABSTAINED, Codes, Votes, label_codes
from datadreamer_like.graph.output import Column
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.llm import LLM
from datadreamer_like.report import Interval, Table, TableColumn

from ..base.model_step import check_options
from ..base.preview import fail_unless_preview
from ..base.step import Step, SuperStep
from ..prompting.answer_readers import read_winner_or_tie
from ..prompting.judge_pairs import JudgeGenerationPairsWithPrompt, JudgePairsWithPrompt

JUDGES = (list, tuple, dict)
"""What the argument `llms` may be."""

VERDICTS = ("a", "b", "tie")
_A, _B, _TIE = range(3)
_OWN = ("verdicts", "probabilities", "soft_labels")
_UNWEIGHED = "all judges count the same"
_LABELS = {"a_label": "Response A:", "b_label": "Response B:"}
_INSTRUCTION = (
    "Which response is better? Respond with 'Response A', 'Response B', or 'Tie' if they are equally good, and nothing "
    "else."
)
_COLUMNS = (
    TableColumn("judge", "judge", align="left"),
    TableColumn("gold", "gold rows", "", ",d"),
    TableColumn("accuracy", "accuracy", "%", ".1f", 100),
    TableColumn("kappa", "Cohen's kappa", "", ".2f"),
    TableColumn("same", "same in both orders", "%", ".1f", 100),
    TableColumn("first", "prefers the first", "%", ".1f", 100),
    TableColumn("ties", "ties", "%", ".1f", 100),
    TableColumn("none", "no verdict", "%", ".1f", 100),
)
_NOTES = (
    "Accuracy and kappa: of the verdicts on gold rows, with 95 % intervals, exact and by bootstrap. A verdict that the "
    "two orders disagree on is a tie; one that cannot be read in either order is none.",
    "Same in both orders: rows with the same winner, or a tie, in both. Prefers the first: answers with a winner that "
    "name the candidate shown first; 50 % without a position bias.",
    "The last row is the panel: each gold row is judged by what the others say of the judges.",
)
_AGREEMENT = (
    TableColumn("first", "judge", align="left"),
    TableColumn("other", "and", align="left"),
    TableColumn("rows", "rows", "", ",d"),
    TableColumn("same", "agreement", "%", ".1f", 100),
    TableColumn("kappa", "Cohen's kappa", "", ".2f"),
)


class Judges(SuperStep):
    """Asks several LLMs which of two responses is better, and weighs them by how often they agree with gold verdicts.

    Inputs: `a`, `b`, `prompts` (optional), `gold` ("a", "b" or "tie" on some rows, None on others). Args: `llms` (a
    list, or a dictionary of names and LLMs), `instruction`, and options of the LLMs such as `max_new_tokens`. Outputs:
    `verdicts` ("a", "b" or "tie", of the panel; None without a verdict), `probabilities` (of the verdict),
    `soft_labels` (of each verdict), and for each judge its verdict, as `"<name>"`, and what it said with either
    candidate first, as `"<name>, a first"` and `"<name>, b first"`.

    Each pair is asked for in both orders, since LLMs favour a position (Zheng et al. 2023, arXiv:2306.05685): a
    candidate wins if it wins in both, otherwise the pair is a tie. A judge that names neither is asked again once; then
    it has no verdict on that row, which is counted and says nothing of the pair. Verdicts are weighed by the judges'
    accuracies on the gold rows (`evaluation.fit_label_model`), each of which counts once as it is and once with its
    candidates swapped.

    Raises:
        EmptyDataset, LabelError: No row has a gold verdict, or one is not "a", "b" or "tie".
        DataError: There are verdicts, but none on a gold row.

    Example:
        >>> panel = Judges(  # doctest: +SKIP
        ...     "Panel", inputs={"a": rows.output["a"], "b": rows.output["b"], "gold": rows.output["better"]},
        ...     args={"llms": {"small": small, "large": large}, "max_new_tokens": 8},
        ... )
        >>> print(panel.summary())  # doctest: +SKIP
        >>> print(panel.agreement())  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 3  # 2: ties in sentences; 3: a judge without a verdict says nothing

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("a", help="One response.")
        self.register_input("b", help="The other response.")
        self.register_input("prompts", required=False, help="What they respond to.")
        self.register_input("gold", help="The better one of some rows: a, b, or tie; None for others.")
        self.register_arg("llms", type=JUDGES, help="The judges: LLMs, or a dictionary of names and LLMs.")
        self.register_arg(
            "instruction", required=False, type=str, help="How to judge.", default_help="asks which one is better"
        )
        self.register_arg("**kwargs")
        self.register_output("verdicts", help="The panel's verdict: a, b, or tie.")
        self.register_output("probabilities", help="The probability of the verdict.")
        self.register_output("soft_labels", help="The probability of each verdict.")
        self.register_output("*", help="Each judge's verdict, and what it said in either order.")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        inputs = {"a": ["one", "two"], "b": ["three", "four"], "gold": ["a", None]}
        return {"inputs": inputs, "args": {}}

    def configure(self) -> None:
        """Checks the judges, and registers their columns."""
        llms = self._args["llms"]
        if not llms:
            raise DefinitionError(f'"{self.name}": llms is empty. Pass at least one LLM.')
        named = llms.items() if isinstance(llms, Mapping) else ((None, llm) for llm in llms)
        self._judges: dict[str, LLM] = {}
        for name, llm in named:
            if not isinstance(llm, LLM):
                raise ArgumentTypeError(f'"{self.name}": llms has {llm!r:.100}, which is not an LLM.')
            own = str(name or llm.model_name or llm.display_name)
            if own in self._judges:
                raise DefinitionError(
                    f'"{self.name}": two judges are called "{own}". Name them: llms={{"first": ...}}.'
                )
            self._judges[own] = llm
            check_options(self.name, self._arg_specs, self._args, llm, "llms")
        columns = [column for name in self._judges for column in self._columns(name)]
        for column in columns:
            if columns.count(column) > 1 or column in _OWN:
                raise DefinitionError(
                    f'"{self.name}": with these names of judges, two columns are called "{column}". Name the judges '
                    'differently: llms={"first": ...}.'
                )
        self.replace_output("*", columns)

    def run(self) -> dict[str, list[Any]]:
        """Asks the judges, learns their accuracies from the gold rows, and combines their verdicts."""
        check_lengths(self._inputs)
        gold = self._gold
        if set(gold) - {ABSTAINED} == {_TIE}:
            self.logger.warning(
                '"%s": all gold verdicts are ties, so nothing is known of how the judges find a better response, and '
                "ties count as likelier than they say. Add gold rows with a winner.",
                self.name,
            )
        said: dict[str, list[Any]] = {}
        for name, llm in self._judges.items():
            orders = [self._asked(name, llm, swapped) for swapped in (False, True)]
            verdicts = [_verdict(*pair) for pair in zip(*orders, strict=True)]
            said |= dict(zip(self._columns(name), (verdicts, *orders), strict=True))
        votes = Votes.of({name: said[name] for name in self._judges}, VERDICTS, f'"{self.name}"')
        if votes.has_vote.any() and not _teaches(votes, gold):
            error = DataError(
                f'"{self.name}": no judge has a verdict on any of the {int((gold != ABSTAINED).sum()):,} gold rows, so '
                "nothing is known of the judges. Add gold verdicts of other rows; answers are not asked for again."
            )
            fail_unless_preview(self, error, _UNWEIGHED)
        chances = _weighed(votes, gold, votes)
        codes = _likeliest(votes, chances)
        return {
            "verdicts": [None if code == ABSTAINED else VERDICTS[code] for code in codes],
            "probabilities": [
                None if code == ABSTAINED else float(row[code]) for code, row in zip(codes, chances, strict=True)
            ],
            "soft_labels": [
                None if code == ABSTAINED else dict(zip(VERDICTS, row, strict=True))
                for code, row in zip(codes, chances.tolist(), strict=True)
            ],
            **said,
        }

    def _columns(self, judge: str) -> tuple[str, str, str]:
        return judge, f"{judge}, a first", f"{judge}, b first"

    def _asked(self, name: str, llm: LLM, swapped: bool) -> list[str | None]:
        """What a judge says with `a` shown first, or with `b`."""
        first, second = ("b", "a") if swapped else ("a", "b")
        inputs: dict[str, Column] = {"a": self._inputs[first], "b": self._inputs[second]}
        kind: type[Step] = JudgePairsWithPrompt
        if "prompts" in self._inputs:
            kind, inputs["prompts"] = JudgeGenerationPairsWithPrompt, self._inputs["prompts"]
        options = {key: value for key, value in self._args.items() if key not in self._arg_specs}
        args = {
            "llm": llm, "instruction": self._args["instruction"] or _INSTRUCTION, "randomize_order": False,
            "judgement_func": read_pair_verdict, **_LABELS, **options,
        }  # fmt: skip
        step = kind(f"{name}, {first} first", inputs=inputs, args=args)
        said = list(step.output["judgements"])
        return [{"a": "b", "b": "a"}.get(verdict, verdict) for verdict in said] if swapped else said

    # The result

    @cached_property
    def _votes(self) -> Votes:
        names = self.output_name_mapping
        return Votes.of({name: self.output[names[name]] for name in self._judges}, VERDICTS, f'"{self.name}"')

    @cached_property
    def _gold(self) -> Codes:
        try:
            return label_codes(self._inputs["gold"], VERDICTS, f'"{self.name}": gold')
        except EmptyDataset as error:
            fail_unless_preview(self, error, _UNWEIGHED)
            return np.array([ABSTAINED for _ in self._inputs["gold"]])

    def summary(self) -> Table:
        """Returns how far each judge, and the panel, agrees with the gold verdicts and with itself."""
        rows: list[dict[str, Any]] = []
        names = self.output_name_mapping
        for place, name in enumerate(self._judges):
            a_first, b_first = (list(self.output[names[column]]) for column in self._columns(name)[1:])
            codes = self._votes.codes[:, place]
            both = [pair for pair in zip(a_first, b_first, strict=True) if None not in pair]
            firsts = [verdict == "a" for verdict in a_first if verdict in ("a", "b")]
            firsts += [verdict == "b" for verdict in b_first if verdict in ("a", "b")]
            row = {"judge": name, "same": _share([one == other for one, other in both]), "first": _share(firsts)}
            rows.append(row | self._measured(codes))
        rows.append({"judge": self.name} | self._measured(self._held_out()))
        return Table(_COLUMNS, rows, self.name, _NOTES)

    def agreement(self) -> Table:
        """Returns how far any two judges agree on the rows on which both have a verdict."""
        rows: list[dict[str, Any]] = []
        for (one, first), (other, second) in combinations(zip(self._judges, self._votes.codes.T, strict=True), 2):
            both = (first != ABSTAINED) & (second != ABSTAINED)
            row: dict[str, Any] = {"first": one, "other": other, "rows": int(both.sum())}
            if both.any():
                row["same"] = exact_interval(int((first == second)[both].sum()), int(both.sum()))
                row["kappa"] = cohens_kappa(first[both].tolist(), second[both].tolist())
            rows.append(row)
        return Table(_AGREEMENT, rows, self.name, ["With 95 % intervals, exact and by bootstrap."])

    def _held_out(self) -> Codes:
        """The panel's verdicts, on gold rows without what the row itself says of the judges."""
        votes, gold = self._votes, self._gold
        codes = _likeliest(votes, _weighed(votes, gold, votes))
        known: dict[tuple[int, ...], int] = {}
        for row in np.flatnonzero(gold != ABSTAINED):
            kind = (*votes.codes[row].tolist(), int(gold[row]))
            if kind not in known:
                others = gold.copy()
                others[row] = ABSTAINED
                one = Votes(votes.voters, votes.classes, votes.codes[[row]])
                taught = _teaches(votes, others)
                known[kind] = int(_likeliest(one, _weighed(votes, others, one))[0]) if taught else ABSTAINED
            codes[row] = known[kind]
        return codes

    def _measured(self, codes: Codes) -> dict[str, Any]:
        asked = (codes != ABSTAINED) & (self._gold != ABSTAINED)
        found: dict[str, Any] = {"gold": int(asked.sum())}
        if asked.any():
            found["accuracy"] = exact_interval(int((codes == self._gold)[asked].sum()), found["gold"])
            found["kappa"] = cohens_kappa(codes[asked].tolist(), self._gold[asked].tolist())
        return found | {"ties": float((codes == _TIE).mean()), "none": float((codes == ABSTAINED).mean())}


def read_pair_verdict(text: str, swapped: bool) -> str | Rejected:
    """Reads a verdict: "a" for the candidate shown first."""
    found = read_winner_or_tie(text, _LABELS["a_label"], _LABELS["b_label"])
    return Rejected("It names no winner. Respond with 'Response A', 'Response B' or 'Tie'.") if found is None else found


def _verdict(a_first: str | None, b_first: str | None) -> str | None:
    if a_first is None or b_first is None:
        return None
    return a_first if a_first == b_first else "tie"


def _teaches(votes: Votes, gold: Codes) -> bool:
    """Whether a judge has a verdict on a gold row."""
    return bool((votes.has_vote & (gold != ABSTAINED)).any())


def _weighed(votes: Votes, gold: Codes, asked: Votes) -> Floats:
    """Probabilities of verdicts on the rows asked for, by the judges' votes on gold rows as they are and swapped.

    The share of the votes if there are none on gold rows, as in a preview of few rows.
    """
    if not _teaches(votes, gold):
        return asked.shares
    swap = np.array([_B, _A, _TIE, ABSTAINED])
    both = Votes(votes.voters, votes.classes, np.concatenate([votes.codes, swap[votes.codes]]))
    fitted = fit_to_codes(both, np.concatenate([gold, swap[gold]]), gold_only=True)
    return fitted.probabilities(asked, abstentions=False)


def _likeliest(votes: Votes, chances: Floats) -> Codes:
    """The likeliest verdict of each row; a tie where a and b are as likely, -1 without any verdict."""
    best = np.where(np.abs(chances[:, _A] - chances[:, _B]) < 1e-9, _TIE, chances.argmax(1))
    return np.where(votes.has_vote, best, ABSTAINED)


def _share(hits: list[bool]) -> Interval | None:
    return exact_interval(sum(hits), len(hits)) if hits else None
