"""Cards of datasets and models, and finding those that fit a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, HubError, check_number
from datadreamer_like.models import BM25Retriever
from datadreamer_like.steps import CSVDataSource, HFHubDataSource, JSONDataSource, Step

_CARD_LENGTH = 4000


@dataclass(frozen=True)
class HubCard:
    """What is known of a dataset or a model, by which it is found.

    Attributes:
        name: A name to show.
        description: What it is and what it is for, in words that a task would be described with.
        path: A CSV or JSON file, a folder, or an id on the Hub; by default the name.
        downloads: How popular it is.
        megabytes: Its size; None if it is not known.
        input_column, output_column: Of a dataset, the columns to learn from.

    Example:
        >>> HubCard("topics", "Package descriptions with their topics", "topics.csv", input_column="text",
        ...      output_column="topic").path
        'topics.csv'
    """

    name: str
    description: str
    path: str = ""
    downloads: int = 0
    megabytes: float | None = None
    input_column: str | None = None
    output_column: str | None = None

    def __post_init__(self) -> None:
        check_number(self.downloads, f'card "{self.name}": downloads', 0, whole=True)
        check_number(self.megabytes, f'card "{self.name}": megabytes', 0, optional=True)
        if not self.path:
            object.__setattr__(self, "path", self.name)

    def load(self, name: str) -> Step:
        """Returns the rows of a dataset as a step of this name, downloaded if it is on the Hub."""
        if self.path.endswith(".csv"):
            return CSVDataSource(name, data_files=self.path)
        if self.path.endswith((".json", ".jsonl")):
            return JSONDataSource(name, data_files=self.path)
        return HFHubDataSource(name, self.path, split="train")


def rank_cards(
    query: str, cards: Sequence[HubCard], *, popularity: bool = False, max_megabytes: float | None = None
) -> list[tuple[HubCard, float]]:
    """Returns the cards that share words with a query, best first, with their scores.

    The score is that of BM25 on name and description, with `popularity` times ln(1 + downloads), as Prompt2Model ranks
    models (Viswanathan et al. 2023, arXiv:2308.12261). Models that are known to be larger than `max_megabytes` are left
    out.

    Raises:
        EmptyDataset, ArgumentTypeError: There are no cards, or one is not a `HubCard`.

    Example:
        >>> cards = [HubCard("a", "translates French", downloads=9), HubCard("b", "answers questions in French")]
        >>> [card.name for card, _ in rank_cards("questions in French", cards)]  # doctest: +SKIP
        ['b', 'a']
    """
    check_cards(cards, "cards")
    fitting = [
        card for card in cards if max_megabytes is None or card.megabytes is None or card.megabytes <= max_megabytes
    ]
    if not fitting:
        raise EmptyDataset(f"All {len(cards):,} cards are of models larger than {max_megabytes:g} MB. Raise the limit.")
    texts = [f"{card.name} {card.description}" for card in fitting]
    (found,) = BM25Retriever(texts).run([query], k=len(fitting))
    scored = [
        (fitting[place], score * (math.log1p(fitting[place].downloads) if popularity else 1.0))
        for place, score in zip(found["indices"], found["scores"], strict=True)
    ]
    return sorted(scored, key=lambda each: -each[1])


def hub_cards(
    kind: Literal["model", "dataset"], search: str, limit: int = 20, token: str | None = None
) -> list[HubCard]:
    """Returns cards of the Hub's most downloaded models or datasets that a search finds, with the text of their pages.

    Cards of datasets have no `input_column` and `output_column`; set them with `dataclasses.replace` after a look.

    Raises:
        HubError: The Hub is unavailable, or refuses the request.
    """
    from huggingface_hub import DatasetCard, HfApi, ModelCard
    from huggingface_hub.errors import EntryNotFoundError

    if kind not in ("model", "dataset"):
        raise DefinitionError(f'kind is {kind!r}; expected "model" or "dataset".')
    check_number(limit, "limit", 1, whole=True)
    api, found = HfApi(token=token), []
    try:
        listed: Any = (api.list_models if kind == "model" else api.list_datasets)(
            search=search, sort="downloads", limit=limit
        )
        for info in listed:
            try:
                page = (ModelCard if kind == "model" else DatasetCard).load(info.id, token=token).text
            except EntryNotFoundError:
                page = ""
            words = " ".join([info.id, *(info.tags or []), page[:_CARD_LENGTH]])
            found.append(HubCard(info.id, words, downloads=info.downloads or 0))
    except Exception as error:  # libraries below raise different errors without a connection
        raise HubError(
            f"The Hub cannot be searched for {kind}s ({type(error).__name__}: {error}). Check the connection and the "
            "token, or pass cards of your own."
        ) from error
    return found


def check_cards(cards: object, what: str) -> None:
    """Refuses what is not a list of cards, or is empty."""
    if not isinstance(cards, Sequence) or not all(isinstance(card, HubCard) for card in cards):
        raise ArgumentTypeError(f"{what} must be a list of HubCard, not {cards!r:.100}.")
    if not cards:
        raise EmptyDataset(f"{what} is empty. Pass the cards of what may be used, or None.")
