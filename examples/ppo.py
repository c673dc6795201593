"""Teaching a language model by reinforcement learning, on a laptop's CPU: proximal policy optimization.

A tiny language model first learns to write the titles of software packages. Then a function rewards plain words: the
share of a title's words that have at most four letters. Nobody shows the model such a title; it finds out by itself
what is rewarded, while a penalty keeps it near the model that it was, so that it still writes titles. Stop it at any
moment and run it again: it goes on. `--short` makes a round of it, to see that it runs.
"""

import re
import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import HFTransformers
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFFineTune, TrainHFPPO

SHORT = "--short" in sys.argv
arguments = [argument for argument in sys.argv[1:] if argument != "--short"]
OUTPUT = Path(arguments[0] if arguments else "ppo-output")
DATA = Path(__file__).parent / "data"


def new_model(texts: list[str], folder: Path) -> Path:
    """Makes a Llama of two layers with random weights, and a tokenizer for the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=["<eos>"], show_progress=False)
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", model_max_length=64
    ).save_pretrained(folder)
    set_seed(1)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=2000, max_position_embeddings=64, eos_token_id=0, bos_token_id=None, **sizes)
    ).save_pretrained(folder)
    return folder


def plain_words(prompts: list[str], titles: list[str]) -> list[float]:
    """The share of words with at most four letters; 0 for a title of fewer than three words."""
    words = [re.findall(r"[A-Za-z]+", title) for title in titles]
    return [sum(len(word) <= 4 for word in row) / len(row) if len(row) > 2 else 0.0 for row in words]


with DataDreamer(OUTPUT):
    source = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv")
    rows = source.shuffle(seed=1).take(96 if SHORT else 3200).map(
        lambda row: {"prompt": f"{row['package']} ({row['topic']}):", "title": f" {row['title']}"}, lazy=False
    )  # fmt: skip
    sizes = {"train_size": len(rows.output) - 64, "validation_size": 64}
    train, validation = rows.save(name="Titles").splits(**sizes).values()

    model = OUTPUT / ".new-model"
    if not (model / "config.json").exists():
        new_model([f"{row['prompt']}{row['title']}" for row in train.output], model)
    titles = TrainHFFineTune("Writes titles", model, device="cpu")
    titles.train(
        *(part.output[name] for part in (train, validation) for name in ("prompt", "title")),
        epochs=1 if SHORT else 6, batch_size=32, learning_rate=2e-3,
    )  # fmt: skip

    asked = train.take(32 if SHORT else 512).save(name="Prompts")
    plain = TrainHFPPO("Writes plain titles", titles, device="cpu")
    plain.train(
        asked.output["prompt"], validation.output["prompt"], plain_words,
        max_new_tokens=16, epochs=1 if SHORT else 3, batch_size=32, learning_rate=5e-4, init_kl_coef=0.02,
    )  # fmt: skip

    prompts = list(validation.output["prompt"])
    print(f"\nOn {len(prompts)} packages that it was not trained on:")
    for name, trainer in (("before", titles), ("after", plain)):
        written = HFTransformers(trainer).run(prompts, max_new_tokens=16, temperature=1.0, top_p=1.0, seed=1)
        reward = sum(plain_words(prompts, written)) / len(prompts)
        print(f"  {name:6} {100 * reward:.0f} % plain words, such as:{written[0]};{written[1]}")
    print(f"It is {plain.metrics['kl']:.1f} nats from the model that it was.")
