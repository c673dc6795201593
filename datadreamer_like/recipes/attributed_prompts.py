"""Attributed prompts: an LLM names the ways in which texts of a class can differ, and each prompt asks for one."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datadreamer_like.errors import DataError, DefinitionError, check_number
from datadreamer_like.evaluation.diversity import diversity
from datadreamer_like.models import LLM, Answer, Embedder, Rejected
from datadreamer_like.report import Table, TableColumn
from datadreamer_like.steps import DataSource, Prompt, Step, zipped

from .parts import check_llm, check_llm_options, check_texts

logger = logging.getLogger("datadreamer_like")

_COLUMNS = (
    TableColumn("prompts", "prompts", align="left"),
    TableColumn("rows", "rows", "", ",d"),
    TableColumn("similarity", "similarity", "", ".3f"),
    TableColumn("vocabulary", "vocabulary", "words", ",.0f"),
    TableColumn("distinct_2", "distinct-2", "%", ".1f", 100),
    TableColumn("self_bleu", "self-BLEU", "", ".3f"),
)
_TOKENS_A_VALUE = 32  # at most
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.{1,200}?)\1")
_ITEM = re.compile(r"^\s*(?:\d+[.):]|[-*•])\s*(.+?)\s*$", re.MULTILINE)


class AttributedPrompts:
    """Makes labelled texts from prompts that each ask for other attributes: subtopics, style, length, and so on.

    Yu et al. 2023, arXiv:2306.15895 (AttrPrompt). For each attribute the LLM lists values, for those in `per_label` of
    each class by itself, such as the subtopics of a topic. Each prompt then asks for a text of a class with a random
    value of every attribute. The paper chose attributes with the LLM and by hand; here they are given. It also filtered
    values that fit several classes; here values that the LLM lists for more than one class are left out.

    Args:
        name: Prefix of the names of all steps, which are cached nodes.
        llm: The LLM that lists values and writes texts.
        task: What a text is, in singular: "a short description of a software package".
        labels: The classes.
        attributes: Attributes by name, each with its values, or None to have the LLM list them.
        per_label: Those of them whose values the LLM lists for each class.
        values: How many values the LLM is asked for.
        rows_per_label: Texts of each class.
        control: Also make as many texts from simple prompts, that name the class alone, and compare the diversity.
        embedder: Measures the similarity of the texts of a class.
        seed: Of the random values, and of the LLM.
        **options: Options of the LLM for writing texts; `temperature` and `top_p` are 1 by default. With a
            `max_new_tokens`, which a budget needs, lists of values are bounded too, at 32 tokens a value or more.

    Attributes:
        attributes: The values of each attribute by class.
        rows: A step with the columns `text`, `label` and `attributes`.
        simple: The texts of the simple prompts, a step with `text` and `label`; None without `control`.

    Raises:
        SessionError: There is no session.
        ArgumentTypeError, DefinitionError: An argument makes no sense.
        DataError: The LLM listed no values of an attribute, or wrote no text.

    Example:
        >>> made = AttributedPrompts(  # doctest: +SKIP
        ...     "Descriptions", llm, "a description of a software package", ["games", "science"],
        ...     {"subtopic": None, "length": ["one sentence", "three sentences"]}, per_label=["subtopic"],
        ... )
        >>> print(made)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 1
    papers = ("2306.15895",)

    def __init__(
        self,
        name: str,
        llm: LLM,
        task: str,
        labels: Sequence[str],
        attributes: Mapping[str, Sequence[str] | None],
        *,
        per_label: Sequence[str] = (),
        values: int = 8,
        rows_per_label: int = 50,
        control: bool = False,
        embedder: Embedder | None = None,
        seed: int = 42,
        **options: Any,
    ) -> None:
        check_llm(self, name, llm)
        check_llm_options(self, name, llm, options)
        check_texts([task], f'"{name}": task')
        check_texts(labels, f'"{name}": labels')
        for what, number, least in (("values", values, 1), ("rows_per_label", rows_per_label, 1), ("seed", seed, 0)):
            check_number(number, f'"{name}": {what}', least, whole=True)
        _check_attributes(name, attributes, per_label)
        self.name, self._llm, self._task, self._embedder = name, llm, task, embedder
        self._options = {"temperature": 1.0, "top_p": 1.0, "seed": seed, **options}
        self.attributes: dict[str, dict[str, list[str]]] = {
            attribute: self._values(attribute, given, labels, attribute in per_label, values)
            for attribute, given in attributes.items()
        }
        listed = [label for label in labels if all(label in found for found in self.attributes.values())]
        draw, wanted = random.Random(seed), [label for label in listed for _ in range(rows_per_label)]
        chosen = [{key: draw.choice(found[label]) for key, found in self.attributes.items()} for label in wanted]
        self.rows = self._written(f"{name}, texts", wanted, chosen)
        self.simple = self._written(f"{name}, simple texts", wanted, [{}] * len(wanted)) if control else None
        logger.info("%s", self.table)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments but name and LLM, for tests and documentation."""
        attributes = {"subject": None, "style": ["plain", "formal"]}
        return {
            "task": "a review", "labels": ["kind", "angry"], "attributes": attributes, "per_label": ["subject"],
            "values": 2, "rows_per_label": 2,
        }  # fmt: skip

    def _values(
        self, attribute: str, given: Sequence[str] | None, labels: Sequence[str], by_label: bool, count: int
    ) -> dict[str, list[str]]:
        """The values of an attribute by class, given or listed by the LLM; in a preview those of the first classes."""
        if given is not None:
            return {label: list(given) for label in labels}
        whose = [f" that are about {label}" for label in labels] if by_label else [""]
        ask = "List {} different values of the attribute '{}' for texts of this kind: {}{}. One per line, numbered."
        prompts = [ask.format(count, attribute, self._task, which) for which in whose]
        source = DataSource(f"{self.name}, questions of {attribute}", {"prompt": prompts})
        args = {"llm": self._llm, "parse": _listed, "temperature": 0.0}
        if (longest := self._options.get("max_new_tokens")) is not None:  # which a budget needs
            args["max_new_tokens"] = max(longest, _TOKENS_A_VALUE * count)
        said = Prompt(f"{self.name}, values of {attribute}", {"prompts": source.output["prompt"]}, args)
        lists: list[list[str]] = [(found or [])[:count] for found in said.output["generations"]]
        if by_label:
            shared = [value.lower() for found in lists for value in found]
            lists = [[value for value in found if shared.count(value.lower()) == 1] for found in lists]
        for found, which in zip(lists, whose, strict=False):  # a preview asks the first questions
            if not found:
                raise DataError(
                    f'"{self.name}": the LLM listed no values of "{attribute}"{which}, or only those of other classes; '
                    f'expected {count} lines. See the step "{said.name}", or give the attribute\'s values yourself.'
                )
        return dict(zip(labels, lists if by_label else lists * len(labels), strict=False))

    def _written(self, name: str, labels: Sequence[str], attributes: Sequence[Mapping[str, str]]) -> Step:
        """Texts of the classes with these attributes."""
        prompts = []
        for label, chosen in zip(labels, attributes, strict=True):
            wishes = "".join(f"\n- {key}: {value}" for key, value in chosen.items())
            prompts.append(f"Write {self._task} about {label}." + (f" It has these properties:{wishes}" * bool(wishes)))
        columns: dict[str, list[Any]] = {"prompt": prompts, "label": list(labels)}
        if any(attributes):
            columns["attributes"] = [dict(each) for each in attributes]
        source = DataSource(f"{name}, prompts", columns)
        # A simple prompt is the same for each text of a class, so that the draw alone makes its answers differ.
        said = Prompt(name, {"prompts": source.output["prompt"]}, {"llm": self._llm, "parse": _text, **self._options})
        kept = [row for row, text in enumerate(said.output["generations"]) if text is not None]
        if not kept:
            raise DataError(f'"{self.name}": the LLM wrote no text. See the errors of the step "{said.name}".')
        texts = said.select(kept).select_columns(["generations"]).rename_column("generations", "text")
        return zipped(texts, source.select(kept).remove_columns(["prompt"])).save(name=f"{name}, rows")

    @property
    def table(self) -> Table:
        """How diverse the texts are, from these prompts and from simple ones; means over the classes."""
        arms = {"attributed": self.rows, "simple": self.simple}
        rows = [{"prompts": title} | self._measured(step) for title, step in arms.items() if step is not None]
        columns = [column for column in _COLUMNS if column.key in rows[0]]
        return Table(columns, rows, title=self.name)

    def _measured(self, rows: Step) -> dict[str, Any]:
        by_label: dict[str, list[str]] = {}
        for row in rows.output:
            by_label.setdefault(row["label"], []).append(row["text"])
        found = [diversity(texts, self._embedder) for texts in by_label.values() if len(texts) > 1]
        means = {key: sum(each[key] for each in found) / len(found) for key in found[0]} if found else {}
        return {"rows": sum(map(len, by_label.values())), **means}

    def __str__(self) -> str:
        return str(self.table)


def _listed(answer: Answer, row: dict[str, Any]) -> Any:
    """The items of a numbered or bulleted list, each once, without regard to case."""
    found: dict[str, str] = {}
    for item in _ITEM.findall(answer.text or ""):
        value = _BOLD.sub(r"\2", item).strip(" *\"'.")
        found.setdefault(value.lower(), value)
    return [value for value in found.values() if value] or Rejected(
        "It is not a list. Write one value per line, numbered."
    )


def _text(answer: Answer, row: dict[str, Any]) -> Any:
    return (answer.text or "").strip().strip('"') or Rejected("It is empty.")


def _check_attributes(name: str, attributes: Mapping[str, Any], per_label: Sequence[str]) -> None:
    if not isinstance(attributes, Mapping) or not attributes:
        raise DefinitionError(f'"{name}": attributes must be a dictionary of one or more, not {attributes!r:.100}.')
    for attribute, given in attributes.items():
        if given is not None:
            check_texts(given, f'"{name}": attribute "{attribute}"')
    for attribute in per_label:
        if attribute not in attributes:
            raise DefinitionError(
                f'"{name}": per_label names "{attribute}"; the attributes are: {", ".join(attributes)}.'
            )
        if attributes[attribute] is not None:
            raise DefinitionError(
                f'"{name}": per_label names "{attribute}", whose values are given. Pass None to have the LLM list them.'
            )
