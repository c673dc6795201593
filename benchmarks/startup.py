"""Time to import the package, and to run a finished script of a hundred steps again.

Run: python benchmarks/startup.py
Bars: the import under 0.3 s and without torch; the rerun under 1 s beyond imports.
"""

import json
import statistics
import subprocess
import sys
import tempfile

IMPORT = (
    "import sys, time; t = time.perf_counter(); import datadreamer_like; "
    "from datadreamer_like import DataDreamer; print(time.perf_counter() - t, 'torch' in sys.modules)"
)
BARE = "import time; t = time.perf_counter(); import pyarrow, numpy; print(time.perf_counter() - t)"
SCRIPT = """
import sys, time, json
from datadreamer_like import DataDreamer
from datadreamer_like.steps import DataSource, Step
import datasets

class Next(Step):
    def setup(self):
        self.register_input("n")
        self.register_arg("by")
        self.register_output("n")

    def run(self):
        return [n + self.args["by"] for n in self.inputs["n"]]

started = time.perf_counter()
with DataDreamer(sys.argv[1], verbose=False):
    step = DataSource("Numbers", data={"n": list(range(1000))})
    for by in range(99):
        step = Next(f"Step {by}", inputs={"n": step.output["n"]}, args={"by": by})
    last = step.output["n"][-1]
print(json.dumps({"seconds": time.perf_counter() - started, "last": last}))
"""


def run(code: str, *args: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True).stdout


def main() -> None:
    imports = [run(IMPORT).split() for _ in range(5)]
    bare = [float(run(BARE)) for _ in range(5)]
    seconds = statistics.median(float(line[0]) for line in imports)
    alone = statistics.median(bare)
    print(f"import datadreamer_like: {seconds:.3f} s (bar 0.3 s); numpy and pyarrow alone: {alone:.3f} s")
    print(f"torch imported: {imports[0][1]}")
    with tempfile.TemporaryDirectory() as folder:
        first = json.loads(run(SCRIPT, folder))
        again = [json.loads(run(SCRIPT, folder)) for _ in range(3)]
    assert all(result["last"] == first["last"] == 999 + sum(range(99)) for result in again)
    rerun = statistics.median(result["seconds"] for result in again)
    print(f"100 steps: first run {first['seconds']:.2f} s, rerun {rerun:.2f} s beyond imports (bar 1 s)")


if __name__ == "__main__":
    main()
