"""Counts the package's files and functions that process one prompt, in a `Prompt` step with a fake engine.

Counts the steady state of a run: all functions of the package that any thread enters between the fifth and the last
answer, from reading the prompt to writing its answer, without one-time work of the step (fingerprint, manifest,
progress). Nor is what a timer does ten times a second, through which no prompt passes: letting other processes in.
With `--all`, the step's construction is counted too. Exits with 1 above the bar.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import datadreamer_like
from datadreamer_like import DataDreamer
from datadreamer_like.models import LLM, Answer, Request
from datadreamer_like.steps import DataSource, Prompt

BAR = 15
OF_A_TIMER = "ConcurrentEngine._let_others_in"
ROWS = 6_000
PACKAGE = Path(datadreamer_like.__file__).parent

Seen = dict[str, set[str]]


class Recorder:
    """Records which functions of the package are entered, in any thread, while it is on."""

    def __init__(self) -> None:
        self.seen: Seen = defaultdict(set)
        self.on = False
        self._prefix = f"{PACKAGE}/"
        sys.setprofile(self._enter)
        threading.setprofile(self._enter)

    def _enter(self, frame: FrameType, event: str, _: object) -> None:
        if self.on and event == "call" and frame.f_code.co_filename.startswith(self._prefix) and not _of_timer(frame):
            self.seen[frame.f_code.co_filename.removeprefix(self._prefix)].add(frame.f_code.co_qualname)


def _of_timer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_qualname == OF_A_TIMER:
            return True
        frame = frame.f_back
    return False


class Fake:
    """Starts the recorder at the fifth answer, and stops it at the last one."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.answered = 0

    def answer(self, request: Request) -> Answer:
        """Returns the prompt in capitals."""
        self.answered += 1
        if self.answered == 5:
            self.recorder.on = True
        if self.answered == ROWS:
            self.recorder.on = False
        return Answer([str(request.prompt).upper()], 3, 3, ["stop"])


class FakeBatches(LLM):
    """An engine that takes batches."""

    model_name = "fake"
    fake: Fake

    def answer_batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers at once."""
        return [self.fake.answer(request) for request in requests]


class FakeRequests(LLM):
    """An engine that takes many requests at once."""

    model_name = "fake"
    fake: Fake

    async def answer(self, request: Request) -> Answer:
        """Answers at once."""
        return self.fake.answer(request)


def count(kind: type[FakeBatches | FakeRequests], recorder: Recorder, everything: bool) -> Seen:
    """Returns the functions that are entered in a run, by file."""
    recorder.seen = defaultdict(set)
    gc.collect()  # what earlier sessions do at their end is not on a prompt's path
    llm = kind()
    llm.fake = Fake(recorder)
    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder, verbose=False):
        data = {"prompts": [f"Say something about {number}." for number in range(ROWS)]}
        source = DataSource("Prompts", data=data)
        if everything:
            recorder.on = True
        step = Prompt(
            "Ask", inputs={"prompts": source.output["prompts"]}, args={"llm": llm, "temperature": 1.0, "top_p": 1.0}
        )
        recorder.on = False
        assert step.output[ROWS - 1]["generations"] == f"SAY SOMETHING ABOUT {ROWS - 1}."
    return recorder.seen


def main() -> int:
    """Prints the files and functions, for both kinds of engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="count what the step does once, too")
    everything = parser.parse_args().all
    recorder = Recorder()
    most = 0
    for kind in (FakeBatches, FakeRequests):
        count(kind, recorder, everything)  # imports and caches are filled
        seen = count(kind, recorder, everything)
        print(f"{kind.__doc__} {len(seen)} files, {sum(map(len, seen.values()))} functions")
        for file, functions in sorted(seen.items()):
            print(f"  {file:45} {', '.join(sorted(functions))}")
        most = max(most, len(seen))
    print(f"{most} files, bar {BAR}: {'met' if most <= BAR else 'MISSED'}")
    return 0 if most <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
