from __future__ import annotations

from pathlib import Path

import pytest

_SENTENCES = [
    "The cat sat on the warm mat.", "A dog ran after the red ball.", "The bird sang in the old tree.",
    "Rain fell on the quiet town.", "She read a long book at night.", "We drank hot tea in the garden.",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_for_vllm(tiny_causal_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_causal_lm`, with heads of 32 dimensions: vLLM's attention for CPUs has none of 16."""
    import tiny_models
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    texts = [f"<bos>{sentence}<eos>" for sentence in _SENTENCES]
    texts += [f"<|user|>{sentence}<eos><|assistant|>{sentence}<eos>" for sentence in _SENTENCES]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model = tiny_models.llama(tokenizer, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    tiny_models.fit(model, 100, **batch, labels=labels)
    return tiny_models.save(model, tokenizer, tmp_path_factory.mktemp("tiny-for-vllm"))
