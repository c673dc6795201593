"""Writes the table in `docs/models.md`: what each LLM of the package can do, read from the classes.

With `--check`, exits with 1 if the page has another table.
"""

from __future__ import annotations

import inspect
import sys
import tomllib
from pathlib import Path
from typing import Any

from datadreamer_like import models
from datadreamer_like.models import LLM, CTransformers, ParallelLLM, Petals
from datadreamer_like.models.llms.endpoint import Endpoint, Quirks

PAGE = Path(__file__).resolve().parents[1] / "docs/models.md"
START, END = "<!-- table: python scripts/models_table.py -->\n", "<!-- end of the table -->\n"
HEAD = (
    "| class | key or credentials | `n` | `seed` | log-probabilities | scores | `schema` | tools | images "
    "| `stop` | prices |\n"
)
PRICES = tomllib.loads((Path(models.__file__).parent / "llms/prices.toml").read_text(encoding="utf-8"))
OTHER_KEYS = {"VertexAI": "Google Cloud's default credentials", "Bedrock": "those of boto3"}


def classes() -> list[type[LLM]]:
    """Returns the LLMs that users make, those behind an API first, by name."""
    found = {getattr(models, name) for name in dir(models)}
    llms = [each for each in found if inspect.isclass(each) and issubclass(each, LLM)]
    kept = [each for each in llms if each not in (LLM, ParallelLLM, CTransformers, Petals)]
    return sorted(kept, key=lambda kind: (not hasattr(kind, "endpoint"), kind.__name__.lower()))


def row(kind: Any) -> list[str]:
    """Returns the cells of a class."""
    name = f"`{kind.__name__}`"
    endpoint: Endpoint | None = getattr(kind, "endpoint", None)
    if endpoint is None:
        scores = kind.score_batch is not LLM.score_batch or kind.score_one is not LLM.score_one
        schema = "enforced" if kind.enforces_schemas else "refused"
        tools, images = _tools(kind.tool_choices), _images(kind)
        return [name, "none", "yes", "yes", "yes", _yes(scores), schema, tools, images, "yes", "free"]
    quirks: Quirks = endpoint.quirks
    key = OTHER_KEYS.get(kind.__name__) or (f"`{endpoint.key_variable}`" if endpoint.key_variable else "none")
    of_provider = PRICES.get(endpoint.name.lower(), {}).get("models", {})
    priced = sum(prices["output"] > 0 for prices in of_provider.values())  # not embedders
    unpriced = "reported with each answer" if quirks.reports_cost else "unknown"
    prices = "free on this machine" if endpoint.key_variable is None else f"{priced} models" if priced else unpriced
    return [
        name,
        key,
        "yes" if quirks.takes_n else "one request each",
        _yes(quirks.seed_name is not None),
        _yes("top_logprobs" not in quirks.refuses),
        _yes(kind.score_one is not LLM.score_one and quirks.echoes),
        "enforced" if quirks.response_format == "json_schema" else "in the prompt; JSON enforced",
        _tools(quirks.tool_choices),
        _images(kind),
        _yes("stop" not in quirks.refuses),
        prices,
    ]


def _tools(choices: frozenset[str]) -> str:
    missing = [name if name == "name" else f"`{name}`" for name in ("none", "required", "name") if name not in choices]
    return (
        "no"
        if not choices
        else "yes"
        if not missing
        else "`auto`"
        if len(missing) == 3
        else ("not by name" if missing == ["name"] else f"not {missing[0]}")
    )


def _images(kind: type[LLM]) -> str:
    return "if the model does" if kind.takes_images else "no"


def _yes(can: bool) -> str:
    return "yes" if can else "no"


def table() -> str:
    """Returns the table."""
    lines = [f"| {' | '.join(row(kind))} |\n" for kind in classes()]
    return f"{HEAD}|{' --- |' * (HEAD.count('|') - 1)}\n{''.join(lines)}"


def page_with(made: str) -> str:
    """Returns the page with this table instead of its own."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return f"{before}{START}\n{made}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    wanted = page_with(table())
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == wanted else f"{PAGE} is outdated: run this without --check")
    PAGE.write_text(wanted, encoding="utf-8")
