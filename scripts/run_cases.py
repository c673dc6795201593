"""Runs a folder of small scripts that each print `right` and end with 0, or say what is wrong; prints a summary.

Run: python scripts/run_cases.py FOLDER [part of a name ...]
Scripts that others of the folder import are no cases. Exit code 1 if a case is not right.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 180
"""Most seconds of a case."""


def main() -> int:
    """Runs the cases and returns the exit code."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        print(f"{sys.argv[1]} is not a folder." if len(sys.argv) > 1 else __doc__)
        return 2
    folder, wanted = Path(sys.argv[1]), sys.argv[2:]
    files = sorted(folder.rglob("*.py"))
    imported = {name for file in files for name in re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.M)}
    cases = [file for file in files if file.stem not in imported]
    cases = [file for file in cases if not wanted or any(part in str(file) for part in wanted)]
    wrong = []
    for case in cases:
        started = time.monotonic()
        try:
            done = subprocess.run([sys.executable, case.name], cwd=case.parent, capture_output=True, timeout=SECONDS)
            right, said = done.returncode == 0, (done.stdout or done.stderr).decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            right, said = False, f"no answer in {SECONDS} s"
        name = case.relative_to(folder).with_suffix("")
        last = said.splitlines()[-1] if said else "(no output)"
        print(f"{'right' if right else 'WRONG'}  {time.monotonic() - started:5.1f} s  {name}   {'' if right else last}")
        if not right:
            wrong.append(str(name))
    print(f"{len(cases) - len(wrong)} of {len(cases)} right{'; wrong: ' + ', '.join(wrong) if wrong else ''}")
    return 1 if wrong or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
