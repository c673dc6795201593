"""Training with objectives on attentions: what the loop minimises, with any kernel, and with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel

from datadreamer_like.distillation import AttentionScores, Combined, Relations, Supervised, TinyBERT
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier, TrainHFFineTune

from .conftest import opinions


@pytest.fixture(scope="module")
def deep_encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher without a head: the same tokens and heads, 48 hidden units and 4 layers in place of 32 and 2."""
    config = AutoConfig.from_pretrained(tiny_encoder, hidden_size=48, num_hidden_layers=4)
    folder = tmp_path_factory.mktemp("deep-encoder")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return folder


def test_the_loop_minimises_minilms_loss_and_says_what_it_is(session, tiny_encoder, deep_encoder, data):
    columns = data(opinions(64), opinions(32, seed=1))
    objective = Combined([Supervised(), Relations(TrainedModel(deep_encoder))], [1.0, 1.0])
    student = TrainHFClassifier("A", str(tiny_encoder)).train(**columns, objective=objective, epochs=2, batch_size=16)
    assert student.model.config._attn_implementation == "sdpa"
    # Attention distributions from another kernel, which returns them, and value relations from the weights.
    models = [
        AutoModel.from_pretrained(path, attn_implementation="eager").eval() for path in (student.path, deep_encoder)
    ]
    batches = [[], []]
    rows, tokenizer = opinions(32, seed=1), student.tokenizer
    total, found = 0.0, []
    for text in rows["text"]:
        inputs = tokenizer(text, return_tensors="pt")
        relations = []
        for model in models:
            with torch.no_grad():
                out = model(**inputs, output_attentions=True, output_hidden_states=True)
                layer = model.encoder.layer[-1].attention.self
                values = layer.value(out.hidden_states[-2])[0].unflatten(-1, (2, -1)).transpose(0, 1)
            vv = (values @ values.transpose(-1, -2) / values.shape[-1] ** 0.5).softmax(-1)
            relations.append((out.attentions[-1][0], vv))
        for (p, q), kept in zip(zip(*relations, strict=True), batches, strict=True):
            kept.append(F.kl_div(p.log(), q, reduction="none").sum(-1).mean(0))
        with torch.no_grad():
            logits = student.model(**inputs).logits[0]
        found.append(
            F.cross_entropy(logits[None], torch.tensor([student.trained.labels.index(rows["label"][len(found)])]))
        )
    total = float(torch.stack(found).mean()) + sum(float(torch.cat(each).mean()) for each in batches)
    # Validation batches weigh by rows, and the mean over tokens is taken in each.
    assert student.metrics["loss"] == pytest.approx(total, rel=0.02)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, in this test
@pytest.mark.parametrize("options", [{}, {"activation_checkpointing": True}])
def test_an_adapter_learns_tinyberts_layers(session, tiny_encoder, deep_encoder, data, options):
    from peft import LoraConfig

    teacher: Any = TrainedModel(deep_encoder)
    student = TrainHFClassifier("A", str(tiny_encoder), peft_config=LoraConfig(r=4, target_modules=["query", "key"]))
    objective = Combined([Supervised(), TinyBERT(teacher, prediction=0.0), AttentionScores(teacher)], [1.0, 1.0, 1.0])
    student.train(
        **data(opinions(64), opinions(16)), objective=objective, epochs=3, batch_size=16, learning_rate=1e-2, **options
    )
    history = student.manifest.result["history"]
    assert history[-1]["loss"] < history[0]["loss"]


def test_attentions_that_cannot_be_compared_are_refused_before_training(session, tiny_causal_lm, tiny_seq2seq, data):
    rows = {"text": ["The cat"], "label": ["sat."]}
    for folder, message in ((tiny_causal_lm, "rotary embedding"), (tiny_seq2seq, "queries, keys and values of T5")):
        with pytest.raises(MethodMisfit, match=message):
            TrainHFFineTune("A", str(folder)).train(**data(rows, rows), objective=Relations(TrainedModel(folder)))
