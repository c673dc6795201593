"""Checks that prose and names use plain technical English: prints each word to avoid, with the one to use instead.

Looks at comments, docstrings, messages and names of the package, scripts, examples and benchmarks, and at the docs.
Standard library only. Exit code 1 where something was found.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKED = (
    "datadreamer_like/",
    "docs/",
    "examples/",
    "benchmarks/",
    "scripts/",
    "README.md",
    "CHANGELOG.md",
    "Makefile",
)
SKIPPED = ("examples/data/", "scripts/check_words.py")
ENDINGS = (".py", ".pyi", ".md", "Makefile")

# What to avoid, as a pattern in any case, and what to write instead.
WORDS = {
    r"mend(s|ed|ing)?": "fix",
    r"whoever|whatever|whichever": "the noun itself",
    r"likewise|thereby": "also, so",
    r"in place of": "instead of",
    r"beside": "next to, in addition to",
    r"stands? (in|at|on|there|alone|beneath|under|below|next|beside|before|behind|twice)": "is in, is at",
    r"what stands": "the contents",
    r"hangs? on": "depends on",
    r"vanish(es|ed)?|goes with the process": "is deleted",
    r"answers nobody|(can be|cannot be|to be) had": "is (not) available",
    r"says no news": "is ignored",
    r"and its kin|kin": "RoBERTa-style models, and similar ones",
    r"fore(see|saw|seen|sees)": "predict, target tokens",
    r"dress(ing|ed|es)": "prompt template",
    r"unknown many|one row for one row": "an unknown number, one output row per input row",
    r"(?<!there )(is|are|was) no (model|number|text|dataset|function|class|file|folder|gguf|json|column)": "is not a",
    r"holes?": "placeholders",
    r"told|tells? apart|says? of itself|says? of themselves|knows? of (a|the|its|their)": "reported, describes, lists",
    r"when (they|it) (is|are) asked for|on demand rows|made on demand": "generated lazily",
    r"for ever": "forever",
    r"verdicts?_?(reader)?s?(?=\.py)|aside_of|_aside|settle[sd]?|at_work|how_asked|answered_by": "the field's own word",
}
PATTERN = re.compile(
    "|".join(rf"(?P<w{index}>(?<![a-z])(?:{word})(?![a-z]))" for index, word in enumerate(WORDS)), re.IGNORECASE
)


def tracked_files() -> list[Path]:
    """Files that are checked: tracked by git, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [
        ROOT / name
        for name in sorted(set(listed))
        if name.startswith(CHECKED) and name.endswith(ENDINGS) and not name.startswith(SKIPPED)
        if (ROOT / name).exists()
    ]


def findings(path: Path) -> list[str]:
    """One line for each word to avoid in a file."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for match in PATTERN.finditer(line):
            instead = list(WORDS.values())[int((match.lastgroup or "w0")[1:])]
            found.append(f'{path.relative_to(ROOT)}:{number}: "{match.group()}": write {instead}')
    return found


def main() -> int:
    """Prints what was found, and returns the exit code."""
    found = [line for path in tracked_files() for line in findings(path)]
    if found:
        print("\n".join(found))
        print(f"{len(found)} places use words to avoid (the table is in scripts/check_words.py)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
