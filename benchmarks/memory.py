"""Peak memory of a million rows through `map → filter → Prompt → save`, answers cached, in a fresh process.

Run: python benchmarks/memory.py [rows]
The bar is 600 MB of resident memory, imports and memory-mapped tables included.
"""

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Iterator

from datadreamer_like import DataDreamer
from datadreamer_like.models import LLM, Answer, Request
from datadreamer_like.steps import DataSource, Prompt

BAR_MB = 600


class Echo(LLM):
    """Answers at once, so that nothing but the pipeline is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.model_name = "echo"

    async def answer(self, request: Request) -> Answer:
        await asyncio.sleep(0)
        return Answer([f"An answer to: {request.prompt}"])


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000

    def texts() -> Iterator[dict[str, object]]:
        for number in range(rows):
            yield {"id": number, "text": f"This is the text of row {number}, about as long as a short sentence is."}

    print(f"imports: {peak_mb():.0f} MB")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, DataDreamer(folder, verbose=False):
        source = DataSource("Texts", data=texts)
        asked = source.map(lambda row: {"prompt": f"Say it again: {row['text']}"}).filter(lambda row: row["id"] >= 0)
        answers = Prompt("Ask", inputs={"prompts": asked.output["prompt"]}, args={"llm": Echo()})
        saved = answers.save(name="Kept")
        assert saved.output.num_rows == rows
    seconds = time.monotonic() - started
    print(f"{rows:,} rows in {seconds:.0f} s ({rows / seconds:,.0f} rows/s), peak {peak_mb():.0f} MB; bar {BAR_MB} MB")
    sys.exit(peak_mb() > BAR_MB)


if __name__ == "__main__":
    main()
