"""The README.md of a published dataset or model: its content, loading and origin."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import CardData, RepoCard

from datadreamer_like.graph.card import Card
from datadreamer_like.storage.shown import clean, markdown

from .metadata import SYNTHETIC_TAG, TAG, public_name, stated

BEGIN = "<!-- datadreamer-like: written when publishing; text outside this block is kept -->"
END = "<!-- datadreamer-like: end {digest} -->"
LONGEST_PROMPT = 4_000
MOST_PROMPTS = 20
MOST_NODES = 100

# Keys that a publication replaces; other keys in the repository are kept.
OWN_KEYS = {"base_model", "base_model_relation", "datasets", "library_name", "pipeline_tag"}  # of models
OWN_KEYS |= {"size_categories", "source_datasets"}  # of datasets
BY_CONFIG = ("dataset_info", "configs")


@dataclass(frozen=True)
class Readme:
    """The card of one publication.

    `metadata` is the YAML block, `body` the Markdown below it, `digest` a hash without times, to detect a change.
    """

    metadata: Mapping[str, Any]
    body: str
    digest: str

    def over(self, present: str | None) -> str:
        """Returns the whole README.md, given the present one.

        An equal card is not changed, even if its times differ. Otherwise this card replaces it; text around it, other
        configurations of a dataset and other keys are kept.
        """
        if present is None:
            return self._text(self.metadata, "", "")
        if END.format(digest=self.digest) in present:
            return present
        metadata, before, after = _parts(present)
        return self._text(_merged(self.metadata, metadata), before, after)

    def _text(self, metadata: Mapping[str, Any], before: str, after: str) -> str:
        block = f"{BEGIN}\n\n{self.body}\n\n{END.format(digest=self.digest)}"
        texts = [text for text in (before.strip("\n"), block, after.strip("\n")) if text]
        return f"---\n{CardData(**metadata).to_yaml()}\n---\n\n" + "\n\n".join(texts) + "\n"


def readme(kind: str, card: Card, metadata: Mapping[str, Any], *, load: str, content: str = "") -> Readme:
    """Writes the card of a "dataset" or "model"; `load` is Python code, `content` Markdown, such as tables."""
    is_synthetic = SYNTHETIC_TAG in metadata.get("tags", ())
    body = _body(kind, card, is_synthetic, load, content)
    timeless = _body(kind, _without_times(card), is_synthetic, load, content)
    said = CardData(**metadata).to_yaml() + timeless
    return Readme(metadata, body, hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:32])


def fence(text: str, language: str = "text") -> str:
    """Puts text into a fenced block whose fence is longer than any in the text."""
    shown = clean(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{shown}\n{ticks}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Renders a Markdown table with escaped cells; an empty text without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *([markdown(str(value)) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _body(kind: str, card: Card, is_synthetic: bool, load: str, content: str) -> str:
    nodes = card.lineage()
    metrics = [(name, f"{value:.6g}") for name, value in card.metrics.items()]
    facts = [(name, public_name(value)) for name, value in card.facts.items()]
    citations = [fence(text.strip(), "bibtex") for text in stated(nodes, "citations")]
    sections = {
        "Load it": fence(load, "python"),
        "What is in it": content,
        "Quality": table(("measure", "value"), metrics),
        "How it was made": _lineage(nodes),
        "More about it": table(("fact", "value"), facts),
        "Models": _listed(stated(nodes, "models")),
        "Datasets": _listed(stated(nodes, "datasets")),
        "Prompts": _prompts(stated(nodes, "prompts")),
        "Licences of what it was made from": _listed(stated(nodes, "licenses")),
        "Links": _listed([link for kind in ("urls", "dataset_cards", "model_cards") for link in stated(nodes, kind)]),
        "Citations": "\n\n".join(citations),
    }
    shown = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    made_with = f"Made with {TAG} {card.package_version}".rstrip() + "."
    return "\n\n".join([f"# {markdown(card.name)}", _summary(kind, card, is_synthetic), *shown, made_with])


def _summary(kind: str, card: Card, is_synthetic: bool) -> str:
    what, how = "A model", "It was trained, wholly or in part, on rows that a language model wrote."
    if kind == "dataset":
        what, how = "Rows", "A language model wrote them, or a part of them."
    made = f"{what} made by the {card.kind} “{markdown(card.name)}” (`{card.class_name}`)"
    made += f" on {card.created[:10]}." if card.created else "."
    return f"{made} {how}" if is_synthetic else made


def _listed(names: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(public_name(name))}" for name in names)


def _lineage(nodes: Sequence[Card]) -> str:
    shown = nodes[-MOST_NODES:]
    rows = []
    for node in shown:
        models = dict.fromkeys([*node.models, *filter(None, [node.base_model])])
        rows.append(
            (
                node.name,
                node.class_name,
                ", ".join(parent.name for parent in node.parents) or "–",
                ", ".join(map(public_name, models)) or "–",
                "–" if node.rows is None else f"{node.rows:,}",
                _hours_and_minutes(node.seconds),
                f"{node.prompt_tokens + node.completion_tokens:,}",
                "–" if node.cost == 0 else _dollars([node]),
            )
        )
    text = table(("node", "class", "made from", "models", "rows", "time", "tokens", "US dollars"), rows)
    if len(shown) < len(nodes):
        text = f"The last {len(shown)} of {len(nodes)} nodes.\n\n{text}"
    sent, received = sum(n.prompt_tokens for n in nodes), sum(n.completion_tokens for n in nodes)
    text += f"\n\nIn all: {_hours_and_minutes(sum(n.seconds for n in nodes))}"
    if sent or received:
        text += f", {sent:,} tokens sent to models and {received:,} received"
    if any(node.cost != 0 for node in nodes):
        text += f", cost in US dollars: {_dollars(nodes)}"
    failed = sum(n.failed_rows for n in nodes)
    return text + (f"; {failed:,} rows failed." if failed else ".")


def _dollars(nodes: Sequence[Card]) -> str:
    """Returns the total cost of nodes; "unknown" with a lower bound if a price is unknown."""
    known = sum(node.cost for node in nodes if node.cost is not None)
    if all(node.cost is not None for node in nodes):
        return f"{known:.4f}"
    return f"unknown, at least {known:.4f}" if known else "unknown"


def _prompts(prompts: Sequence[str]) -> str:
    blocks = []
    for prompt in prompts[:MOST_PROMPTS]:
        cut = len(prompt) - LONGEST_PROMPT
        blocks.append(fence(prompt[:LONGEST_PROMPT]) + (f"\n\n… and {cut:,} characters more." if cut > 0 else ""))
    if len(prompts) > MOST_PROMPTS:
        blocks.append(f"… and {len(prompts) - MOST_PROMPTS} prompts more.")
    return "\n\n".join(blocks)


def _hours_and_minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _without_times(card: Card) -> Card:
    """Copies a lineage without times, which differ between equal runs."""
    copies: dict[int, Card] = {}
    for node in card.lineage():
        parents = [copies[id(parent)] for parent in node.parents]
        copies[id(node)] = replace(node, created="", seconds=0.0, parents=parents)
    return copies[id(card)]


def _parts(text: str) -> tuple[dict[str, Any], str, str]:
    """Splits a README.md into its YAML, the text before our block, and the text after it."""
    metadata: dict[str, Any] = {}
    if re.match(r"\s*---\s*\n", text):
        card = RepoCard(text, ignore_metadata_errors=True)
        metadata, text = card.data.to_dict(), card.text  # type: ignore[no-untyped-call]
    begin, end = text.find(BEGIN), text.rfind(END.partition("{")[0])
    if begin < 0 or end < begin:
        return metadata, text, ""
    return metadata, text[:begin], text[end:].partition("-->")[2]


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(ours) | {key: value for key, value in theirs.items() if key not in ours and key not in OWN_KEYS}
    tags = theirs.get("tags") or []
    tags = [tags] if isinstance(tags, str) else tags
    merged["tags"] = [*ours["tags"], *(tag for tag in tags if tag not in (TAG, SYNTHETIC_TAG))]
    for key in BY_CONFIG:
        if key in ours and theirs.get(key):
            configs = _by_config(theirs[key]) | _by_config(ours[key])
            listed = [{"config_name": name} | config for name, config in sorted(configs.items())]
            merged[key] = ours[key] if len(listed) == 1 else listed
    return merged


def _by_config(value: Any) -> dict[str, Any]:
    listed = value if isinstance(value, list) else [value]
    return {config.get("config_name", "default"): config for config in listed}
