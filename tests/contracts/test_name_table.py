"""The table of names in docs/migrating.md is what `ancestor.txt` and the package say; `freeze.py` writes it."""

from __future__ import annotations

import os
import re
from functools import cache
from itertools import groupby

from test_ancestor import FACTS, PAGE, ROOT, Fact, differences

FILE = ROOT / "docs" / "migrating.md"
BEGIN, END = "<!-- the table of names -->\n", "<!-- its end -->\n"
HEAD = "| DataDreamer | here | the same | different |\n| --- | --- | --- | --- |\n"


def shown(fact: Fact) -> str:
    """A member's name; one that is called has parentheses."""
    if fact.registers is not None:
        return fact.registers[0]
    member = fact.name.partition(".")[2]
    return f"`{member or fact.name}{'' if fact.signature is None else '()'}`"


def here(facts: list[Fact]) -> str:
    """Whether a class or function is the same, changed or left out."""
    if any(missing(fact) for fact in facts if fact.name == owner(fact)):
        return "left out"
    return "changed" if any(fact.reason for fact in facts) else "same"


@cache
def missing(fact: Fact) -> bool:
    return fact.reason is not None and any(found.startswith("missing: ") for found in differences(fact))


def owner(fact: Fact) -> str:
    return fact.name.partition(".")[0]


def row(room: str, name: str, facts: list[Fact]) -> str:
    """The line of a class with its members, or of a function."""
    same = [shown(fact) for fact in facts if fact.reason is None]
    differ = [
        f"{shown(fact)} is missing" if missing(fact) and here(facts) != "left out" else shown(fact)
        for fact in facts
        if fact.reason is not None
    ]
    reasons = dict.fromkeys(fact.reason for fact in facts if fact.reason is not None)
    different = f"{', '.join(differ)}: see {'; '.join(f'*{reason}*' for reason in reasons)}" if reasons else ""
    module = f"datadreamer.{room}" if room else "datadreamer"
    cells = [f"`{module}.{name}`", here(facts), ", ".join(same), different]
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    """All names, by module."""
    found = HEAD
    for room in dict.fromkeys(fact.room for fact in FACTS):
        facts = sorted((fact for fact in FACTS if fact.room == room), key=lambda fact: owner(fact).lower())
        for name, of_name in groupby(facts, key=owner):
            found += row(room, name, list(of_name))
    return found


def test_the_table_of_names_is_what_the_package_says() -> None:
    page = FILE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    if os.environ.get("DATADREAMER_LIKE_FREEZE"):
        FILE.write_text(before + begin + table() + end + after, encoding="utf-8")
    assert table() in FILE.read_text(encoding="utf-8"), "run `python tests/contracts/freeze.py`"


def test_every_reason_is_a_row_of_the_page() -> None:
    first_cells = re.findall(r"^\| (.+?) \|", PAGE.partition(BEGIN)[0], re.MULTILINE)
    for reason in {fact.reason for fact in FACTS if fact.reason is not None}:
        assert any(reason in cell for cell in first_cells), reason
