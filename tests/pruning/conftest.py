"""Small random models of the families that pruning knows, built in a fraction of a second."""

from collections.abc import Callable

import pytest
import torch
import transformers
from transformers import PreTrainedModel

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=90, num_labels=3, max_position_embeddings=64, **SIZES)
    ),
    "roberta": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(vocab_size=90, num_labels=3, max_position_embeddings=64, **SIZES)
    ),
    "xlm-roberta": lambda: transformers.XLMRobertaForSequenceClassification(
        transformers.XLMRobertaConfig(vocab_size=90, num_labels=3, max_position_embeddings=64, **SIZES)
    ),
    "electra": lambda: transformers.ElectraForSequenceClassification(
        transformers.ElectraConfig(vocab_size=90, num_labels=3, embedding_size=16, max_position_embeddings=64, **SIZES)
    ),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=90, num_labels=3, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=64
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=90, num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True, **SIZES
        )
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(vocab_size=90, num_key_value_heads=2, **SIZES)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(vocab_size=90, num_key_value_heads=2, **SIZES)
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(vocab_size=90, num_key_value_heads=2, head_dim=8, **SIZES)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=90, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    ),
}


def build(family: str) -> PreTrainedModel:
    """A random model whose biases and norms are random too, so that losing one shows."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batches(model: PreTrainedModel, count: int = 2, size: int = 4) -> list[dict[str, torch.Tensor]]:
    """Random batches with padding and, for classifiers, labels."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(5, 90, (size, 11), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, 8:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        if "SequenceClassification" in type(model).__name__:
            batch["labels"] = torch.randint(0, 3, (size,), generator=generator)
        else:
            batch["labels"] = ids.masked_fill(mask == 0, -100)
        found.append(batch)
    return found


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's logits on a batch, those of padding positions left out."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**inputs).logits
    return found if found.dim() == 2 else found[batch["attention_mask"].bool()]


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family in turn."""
    return str(request.param)
