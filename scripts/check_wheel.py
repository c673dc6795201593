"""Checks an installed wheel without extras: its contents and its imports.

Run it with the Python that has the wheel, from a folder without a `datadreamer_like`: `python check_wheel.py WHEEL`.
"""

import importlib
import sys
import zipfile
from pathlib import Path

PACKAGE = "datadreamer_like"
HEAVY = ("torch", "transformers", "datasets", "pandas", "rich")
LIGHT_ROOMS = ("storage", "graph", "report", "hub", "models", "steps")
"""Rooms whose public names must all load without extras."""


def problems_of_archive(wheel: Path) -> list[str]:
    """Returns problems with the contents of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        lazy = [name for name in names if name.endswith("/__init__.py") and b"attach_stub" in archive.read(name)]
    found = [f"{name} loads its names from a .pyi, which is missing" for name in lazy if f"{name}i" not in names]
    if f"{PACKAGE}/py.typed" not in names:
        found.append("py.typed is missing: type checkers would ignore the package")
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        found.append("the licence is missing")
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    found += [f"{top} would land in site-packages" for top in sorted(tops - {PACKAGE})]
    return found


def problems_of_import() -> list[str]:
    """Returns problems with importing the installed package and its light rooms."""
    package = importlib.import_module(PACKAGE)
    if "site-packages" not in str(package.__file__):
        return [f"{package.__file__} was imported instead of the installed package"]
    found = [f"import {PACKAGE} also imports {name}" for name in HEAVY if name in sys.modules]
    for room in LIGHT_ROOMS:
        module = importlib.import_module(f"{PACKAGE}.{room}")
        for name in module.__all__:
            try:
                getattr(module, name)
            except ImportError as error:
                found.append(f"{room}.{name} does not load without an extra: {error}")
    return found


def main() -> None:
    """Prints a summary, or exits with the problems."""
    wheel = Path(sys.argv[1])
    found = problems_of_archive(wheel) + problems_of_import()
    if found:
        sys.exit("\n".join(f"{wheel.name}: {line}" for line in found))
    print(f"{wheel.name}: holds its stubs, types and licence; imports light")
    print(f"with the core alone every public name loads of: {', '.join(LIGHT_ROOMS)}")


if __name__ == "__main__":
    main()
