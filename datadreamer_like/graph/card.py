"""Cards: the origin of a node's result, with models, prompts, licences, citations, versions, time, tokens and cost."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

CARD_FORMAT = 1
CARD_NAME = "card.json"

T = TypeVar("T")


class DataCardType(enum.StrEnum):
    """Headings under which a step may register facts with `register_data_card`."""

    DATETIME = "Date & Time"
    MODEL_NAME = "Model Name"
    DATASET_NAME = "Dataset Name"
    LICENSE = "License Information"
    CITATION = "Citation Information"
    MODEL_CARD = "Model Card"
    DATASET_CARD = "Dataset Card"
    URL = "URL"
    PROMPT = "Prompt"


@dataclass
class Card:
    """Origin of one node's result.

    Attributes:
        created: Time of completion, ISO 8601 in UTC.
        seconds: Wall-clock time of the run.
        package_version: Version of this package that made the result.
        models: Names of the models used, as in the script; so are those of datasets.
        prompts: Instructions sent to models.
        licenses: Licences of models and datasets, as stated by them.
        model_cards, dataset_cards: Addresses of their cards.
        cost: US dollars; 0 if nothing was paid for, None if a price is unknown.
        failed_rows: Number of rows with an error instead of a value.
        base_model: Model that training or compression started from, as in the script.
        facts: Other facts by heading.
    """

    name: str
    kind: Literal["step", "trainer", "stage"]
    class_name: str
    format: int = CARD_FORMAT
    created: str = ""
    seconds: float = 0.0
    rows: int | None = None
    package_version: str = ""
    models: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    citations: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    failed_rows: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    base_model: str | None = None
    parents: list[Card] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    model_cards: list[str] = field(default_factory=list)
    dataset_cards: list[str] = field(default_factory=list)

    def register(self, kind: DataCardType | str, value: Any) -> None:
        """Adds a fact under a heading; empty and duplicate values are ignored."""
        if not value:
            return
        known = {
            DataCardType.MODEL_NAME: self.models,
            DataCardType.DATASET_NAME: self.datasets,
            DataCardType.LICENSE: self.licenses,
            DataCardType.CITATION: self.citations,
            DataCardType.URL: self.urls,
            DataCardType.MODEL_CARD: self.model_cards,
            DataCardType.DATASET_CARD: self.dataset_cards,
            DataCardType.PROMPT: self.prompts,
        }.get(str(kind))  # type: ignore[call-overload]
        if known is None:
            self.facts[str(kind)] = str(value)
        elif str(value) not in known:
            known.append(str(value))

    def lineage(self) -> list[Card]:
        """Returns the cards of all ancestors, oldest first, and this card last."""
        return oldest_first(self, lambda card: card.parents)

    def is_synthetic(self) -> bool:
        """Returns whether a language model wrote any rows of this result or its ancestors."""
        return any(
            card.kind == "step" and bool(card.completion_tokens or card.prompts or "Prompt" in card.class_name)
            for card in self.lineage()
        )

    def without_parents(self) -> dict[str, Any]:
        """Returns this node's fields as plain JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "parents"}

    def by_heading(self) -> dict[str, list[Any]]:
        """Returns the facts of this node, as lists by the headings of `DataCardType`; without empty ones."""
        known = {
            DataCardType.DATETIME: [self.created] if self.created else [],
            DataCardType.MODEL_NAME: self.models,
            DataCardType.DATASET_NAME: self.datasets,
            DataCardType.LICENSE: self.licenses,
            DataCardType.CITATION: self.citations,
            DataCardType.MODEL_CARD: self.model_cards,
            DataCardType.DATASET_CARD: self.dataset_cards,
            DataCardType.URL: self.urls,
            DataCardType.PROMPT: self.prompts,
        }
        facts = {str(kind): list(values) for kind, values in known.items() if values}
        return sort_data_card(facts | {heading: [fact] for heading, fact in self.facts.items()})

    def text(self) -> str:
        """Returns the lineage as JSON: for each node, oldest first, its facts by heading."""
        return json.dumps({card.name: card.by_heading() for card in self.lineage()}, indent=4, ensure_ascii=False)

    def to_json(self) -> dict[str, Any]:
        """Returns the card with its lineage as plain JSON values, each node once."""
        nodes = self.lineage()
        position = {id(card): index for index, card in enumerate(nodes)}
        rows = [{**card.without_parents(), "parents": [position[id(p)] for p in card.parents]} for card in nodes]
        return {"format": CARD_FORMAT, "nodes": rows}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Card:
        """Restores a card from `to_json`."""
        cards: list[Card] = []
        for row in data["nodes"]:
            cards.append(cls(**{**row, "parents": [cards[index] for index in row["parents"]]}))
        return cards[-1]


def oldest_first(last: T, parents: Callable[[T], Sequence[T]]) -> list[T]:
    """Returns an item after all its ancestors, each once and after its own parents."""
    order: dict[int, T] = {}
    waiting: list[tuple[T, bool]] = [(last, False)]
    while waiting:  # not by recursion: a chain may be longer than Python's stack
        item, parents_done = waiting.pop()
        if parents_done:
            order.setdefault(id(item), item)
        elif id(item) not in order:
            waiting.append((item, True))
            waiting.extend((parent, False) for parent in reversed(parents(item)))
    return list(order.values())


def sort_data_card(data_card: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Sorts a data card's headings in the order of `DataCardType`, others last."""
    order = [kind.value for kind in DataCardType]
    return dict(sorted(data_card.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
