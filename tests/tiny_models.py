"""Tiny models and tokenizers for every room's tests, built in a fraction of a second; see also `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 90
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
ENCODER = {**SIZES, "max_position_embeddings": 64, "num_labels": 3}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER)),
    "bert-mlm": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**ENCODER)),
    "roberta": lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**ENCODER)),
    "xlm-roberta": lambda: transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**ENCODER)),
    "electra": lambda: transformers.ElectraForSequenceClassification(
        transformers.ElectraConfig(embedding_size=16, **ENCODER)
    ),
    "mpnet": lambda: transformers.MPNetForSequenceClassification(transformers.MPNetConfig(**ENCODER)),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY, num_labels=3, dim=32, hidden_dim=48, n_layers=3, n_heads=4,
            max_position_embeddings=64,
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True, **SIZES)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(num_key_value_heads=2, **SIZES)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(num_key_value_heads=2, tie_word_embeddings=False, **SIZES)
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(num_key_value_heads=2, head_dim=8, **SIZES)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=4,
            decoder_start_token_id=0,
        )
    ),
}  # fmt: skip
"""Makers of small random models, by family."""
MORE_FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt-neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES)),
    "phi3": lambda: transformers.Phi3ForCausalLM(
        transformers.Phi3Config(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SIZES)
    ),
    "bart": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            decoder_start_token_id=0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
}
"""Further makers, of architectures that only some rooms test."""


def build(family: str) -> PreTrainedModel:
    """A random model whose biases and norms are random too, so that losing one shows."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (FAMILIES | MORE_FAMILIES)[family]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batches(model: PreTrainedModel, count: int = 2, size: int = 4) -> list[dict[str, torch.Tensor]]:
    """Random batches with padding, and with labels where the model has a task."""
    import torch

    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(5, VOCABULARY, (size, 11), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, 8:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        if "SequenceClassification" in type(model).__name__:
            batch["labels"] = torch.randint(0, 3, (size,), generator=generator)
        elif model.config.is_encoder_decoder:
            batch["labels"] = ids[:, :4].clone()
            batch["labels"][0, 3:] = -100
        else:
            batch["labels"] = ids.masked_fill(mask == 0, -100)
        found.append(batch)
    return found


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's logits on a batch: [batch, classes], or [tokens, vocabulary] without those of padding."""
    import torch

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = batch["input_ids"][:, :4]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**inputs).logits
    if found.dim() == 2:
        return found
    return found.flatten(0, 1) if model.config.is_encoder_decoder else found[batch["attention_mask"].bool()]


def word_pieces(texts: Iterable[str] | dict[str, int], max_length: int = 64, **options: Any) -> PreTrainedTokenizerFast:
    """A BERT-style tokenizer: trained on texts, or with the vocabulary that is given (special tokens first)."""
    if isinstance(texts, dict):
        backend = Tokenizer(models.WordPiece(texts, unk_token="[UNK]"))
    else:
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if not isinstance(texts, dict):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(
            **{"vocab_size": 200, "special_tokens": special, "show_progress": False, **options}
        )
        backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    )


def byte_pairs(texts: Iterable[str], vocabulary: int, special: list[str], **options: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on texts; options are those of `PreTrainedTokenizerFast`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **options)


def made(kind: type[PreTrainedModel], config: Any, seed: int = 0) -> Any:
    """A model of random weights; the state of the random numbers is left as it was."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config)


def bert(tokenizer: PreTrainedTokenizerFast, kind: Any = None, **config: Any) -> Any:
    """A random BERT of two layers for a tokenizer; `config` overrides its sizes."""
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
    }
    seed = config.pop("seed", 0)
    return made(kind or transformers.BertForSequenceClassification, transformers.BertConfig(**sizes | config), seed)


def llama(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **config: Any) -> Any:
    """A random Llama of two layers for a tokenizer; `config` overrides its sizes."""
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return made(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes | config), seed)


def fit(model: PreTrainedModel, steps: int, **batch: Any) -> None:
    """Trains a model for some steps on one batch."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Writes both to a folder, as `from_pretrained` reads it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
