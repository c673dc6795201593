"""Whether what an answer claims is in its source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, ClassVar

from datadreamer_like.graph.output import Batch
from datadreamer_like.models.calls.failures import Rejected
from datadreamer_like.models.llms.generation import Answer
from datadreamer_like.models.llms.llm import LLM

from ..base.columns import columns_together
from ..base.lazy_rows import From, LazyRowBatches, Traced
from ..base.step import Step
from ..prompting.answer_readers import read_yes_or_no
from .prompt_rounds import PromptRounds, Row

_CLAIMS = """\
{% if question and question | string | trim %}
Question:
{{ question }}

{% endif %}
Answer:
{{ answer }}

List the factual claims of this answer, one on each line, in full sentences that can be understood alone. \
Replace pronouns by the names that they stand for. If it makes no factual claim, write NONE."""

_JUDGE = """\
Source:
{{ source if source is string or source is mapping or source | map("string") | list != source | list \
else source | join("\\n\\n") }}

Claim:
{{ claim }}

Does the source support this claim? Judge by the source alone. Answer with one word: yes or no."""

_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.)])\s+")


class CheckGrounding(PromptRounds):
    """Splits each answer into claims, and judges whether its source supports each of them.

    Inputs: `answers`, `sources` (texts, lists of texts, or `results` of `Retrieve`; other mappings are shown as JSON,
    chats as lines of `role: content`), `questions` (optional; shown next to the answers). Args: `llm`, `judge` (an LLM;
    by default `llm`), `max_follow_ups`, and the options of `llm.run`. Outputs: `answers`, `sources`, `claims` (a list
    of texts), `supported` (a list of booleans, None for a claim without a verdict), `share` (of the claims with a
    verdict, those that are supported; None if there are none).

    One prompt for each answer, and one for each of its claims; none for a row whose answer or source is missing, blank
    or an empty list: it has no claims. A row fails if its claims cannot be read, or if the
    judge says neither yes nor no on one of them, also when asked again.

    Reference: the share is the faithfulness of Es et al. 2023, "RAGAS: Automated Evaluation of Retrieval Augmented
    Generation", arXiv:2309.15217; claims judged one by one, as in Min et al. 2023, "FActScore", arXiv:2305.14251.

    Example:
        >>> checked = CheckGrounding(  # doctest: +SKIP
        ...     "Grounded?",
        ...     inputs={"answers": rag.output["generations"], "sources": documents.output["text"]},
        ...     args={"llm": llm, "temperature": 0.0},
        ... )
        >>> kept = checked.filter(lambda row: row["share"] == 1.0)  # doctest: +SKIP
    """

    # 2: what was retrieved counts as its texts; 3: a blank answer has no claims; 4: nor has one without a source; 5: or
    # with an empty list of sources
    result_version: ClassVar[int] = 5

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("answers", help="The answers to check.")
        self.register_input("sources", help="What each answer must follow from: a text or a list of texts.")
        self.register_input("questions", required=False, help="What was asked.")
        self.register_rounds("The LLM that lists claims.")
        self.register_arg("judge", required=False, type=LLM, help="The LLM that judges claims.", default_help="llm")
        self.register_output("answers", help="The answers.")
        self.register_output("sources", help="Their sources.")
        self.register_output("claims", help="The claims of each answer.")
        self.register_output("supported", help="Whether the source supports each claim.")
        self.register_output("share", help="The share of the claims that the source supports.")

    def run(self) -> LazyRowBatches:
        """Lists the claims of all answers, then judges each."""
        answers, sources = self.inputs["answers"], self.inputs["sources"]
        questions = {} if self.inputs.get("questions") is None else {"question": self.inputs["questions"]}
        template = _CLAIMS if questions else _CLAIMS.partition("{% endif %}\n")[2]
        listed = self.ask(
            "Claims", template, read_claims, "llm", ["question"], answer=answers, source=sources, **questions
        )
        claims = listed.output["generations"]
        each = EachClaim("Each claim", inputs={"claims": claims, "sources": sources}, force=self.force)
        judged = self.ask(
            "Verdicts", _JUDGE, read_verdict, "judge", source=each.output["source"], claim=each.output["claim"]
        )
        verdicts = chain.from_iterable(
            batch["verdict"] for batch in columns_together({"verdict": judged.output["generations"]}, f'"{self.name}"')
        )

        def row(row: Row) -> Row:
            found = row["claims"]
            supported = None if found is None else [next(verdicts) for _ in found]
            known = [verdict for verdict in supported or () if verdict is not None]
            return {**row, "supported": supported, "share": sum(known) / len(known) if known else None}

        rows = each.output["row"]
        self.fail_with([judged], lambda step, index: int(rows[index]))
        return self.rows(row, answers=answers, sources=sources, claims=claims)


class EachClaim(Step):
    """One row for each claim of an answer."""

    result_version: ClassVar[int] = 5  # that of CheckGrounding

    def setup(self) -> None:
        """Registers the step's names."""
        self.register_input("claims", help="Lists of claims.")
        self.register_input("sources", help="Their sources.")
        self.register_output("claim", help="A claim.")
        self.register_output("source", help="Its source.")
        self.register_output("row", help="The row of its answer.")

    def run(self) -> LazyRowBatches:
        """Yields the claims of each batch of answers."""

        def batches() -> Iterator[Traced]:
            start = 0
            for batch in columns_together(self._inputs, f'"{self.name}"'):
                pairs = list(
                    zip(batch["claims"], batch["sources"], range(start, start + len(batch["claims"])), strict=True)
                )
                start += len(pairs)
                found = [
                    (claim, source["texts"] if is_retrieved(source) else source, row)
                    for claims, source, row in pairs
                    for claim in claims or ()
                ]
                made: Batch = {name: [one[place] for one in found] for place, name in enumerate(self._output_specs)}
                if found:
                    yield Traced(made, From("claims", made["row"]), From("sources", made["row"]))

        return LazyRowBatches(batches, save=True)


def read_claims(answer: Answer, row: Row) -> Any:
    """Returns the lines of an answer without bullets and numbers; no lines for NONE."""
    lines = [_BULLET.sub("", line).strip() for line in (answer.text or "").splitlines()]
    claims = list(dict.fromkeys(line for line in lines if line))
    if [claim.strip(" .*").upper() for claim in claims] == ["NONE"]:
        return []
    # A line that announces the list is not a claim.
    claims = [claim for claim in claims if not claim.endswith(":")]
    return claims or Rejected("It must have one claim on each line, or the word NONE.")


def read_verdict(answer: Answer, row: Row) -> Any:
    """Returns yes or no."""
    verdict = read_yes_or_no(answer.text)
    return Rejected("It must be one word: yes or no.") if verdict is None else verdict


def is_retrieved(source: Any) -> bool:
    """Whether a source is a result of `Retrieve`, whose positions and scores say nothing to a judge."""
    return isinstance(source, dict) and source.keys() == {"indices", "texts", "scores"}
