"""qlora=True: an adapter is trained on 4-bit weights, and the saved model is the one that was scored."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, TaskType
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForMaskedLM,
    BitsAndBytesConfig,
    DistilBertConfig,
    DistilBertModel,
)

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit
from datadreamer_like.models import TrainedModel
from datadreamer_like.pruning import Magnitude
from datadreamer_like.quantization import NF4
from datadreamer_like.trainers import (
    TrainEmbeddingClassifier,
    TrainHFClassifier,
    TrainHFDPO,
    TrainHFFineTune,
    TrainHFGRPO,
    TrainHFMaskedLM,
    TrainHFPPO,
    TrainHFRewardModel,
    TrainHFTokenClassifier,
    TrainSentenceTransformer,
    TrainSetFitClassifier,
    TrainStaticClassifier,
)
from datadreamer_like.trainers.training.adapters import prepared_codes, with_adapter

from .conftest import Rows, opinions
from .test_dpo import PAIRS, columns
from .test_reward_model import pairs

ROWS = {"text": PAIRS["prompt"], "label": PAIRS["chosen"]}
SAMPLED: dict[str, Any] = {"max_new_tokens": 3, "batch_size": 4, "epochs": 1}


def count_of_t(texts: list[str]) -> list[float]:
    return [float(text.count("t")) for text in texts]


def prompts() -> dict[str, Any]:
    return {f"{split}_prompts": Rows(split, ROWS).output["text"] for split in ("train", "validation")}


def in_four_bits(folder: Any) -> Any:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def test_gradients_are_the_same_after_an_evaluation(tiny_causal_lm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
        model = with_adapter(prepared_codes(in_four_bits(tiny_causal_lm)), lora, "CAUSAL_LM")
    ids = torch.tensor([[5, 6, 7, 8]] * 2)
    found = []
    for _ in range(2):
        model.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        found.append([weight.grad.clone() for weight in model.parameters() if weight.requires_grad])
        with torch.no_grad():
            model.eval()(input_ids=ids)
    for before, after in zip(*found, strict=True):
        assert before.abs().max() > 0
        assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_saved_model_is_the_one_that_was_trained(session, tiny_causal_lm, data, tmp_path, dtype):
    trainer = TrainHFFineTune("Tuned", str(tiny_causal_lm), qlora=True, dtype=dtype)
    trainer.train(**data(ROWS, ROWS), epochs=4, batch_size=4, learning_rate=1e-2)
    base = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    assert trainer.trained.num_parameters == sum(weight.numel() for weight in base.parameters())
    assert not getattr(trainer.model, "is_quantized", False)
    assert trainer.model.dtype == (torch.bfloat16 if dtype else torch.float32)
    # Loaded by the libraries alone: 4-bit weights with the adapter that was exported.
    quantized = in_four_bits(tiny_causal_lm)
    for module in quantized.modules():
        module.support_avx512bf16_for_cpu = False  # without its kernel of lower precision
    folder = trainer.export_to_disk(tmp_path / "adapter", adapter_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(quantized, str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(trainer.path)
    assert {"q_proj", "down_proj"} <= {name.split(".")[-1] for name, _ in adapted.named_modules()}
    ids = torch.tensor([tokenizer.encode("The cat sat on the warm mat.")])
    with torch.no_grad():
        scored, saved, before = (model(ids).logits.float() for model in (adapted, trainer.model, base))
    assert (saved - scored).abs().max() < (0.2 if dtype else 1e-3) < (saved - before).abs().max()
    q_proj = base.get_parameter("model.layers.0.self_attn.q_proj.weight")
    assert not torch.equal(
        q_proj.to(trainer.model.dtype), trainer.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    )


@pytest.mark.parametrize("kind", ["classifier", "encoder", "preferences", "reward", "ppo", "grpo"])
def test_every_trainer_takes_it(session, tiny_causal_lm, tiny_encoder, data, tmp_path, kind):
    start = tiny_encoder if kind == "encoder" else tiny_causal_lm
    options: dict[str, Any] = {"model_name": str(start), "qlora": True}
    few: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 5e-3}
    if kind in ("classifier", "encoder"):
        rows = {"text": PAIRS["chosen"] + PAIRS["rejected"], "label": ["good"] * 4 + ["bad"] * 4}
        trainer: Any = TrainHFClassifier("A", **options).train(**data(rows, rows), **few)
        assert trainer.metrics["accuracy"] == pytest.approx(
            sum(a == b for a, b in zip(trainer.predict(rows["text"]).labels, rows["label"], strict=True)) / 8
        )
    elif kind == "preferences":
        trainer = TrainHFDPO("A", **options).train(**columns(), **few)
    elif kind == "reward":
        trainer = TrainHFRewardModel("A", **options).train_with_pairs(**pairs(), **few)
        chosen, rejected = (trainer.score(PAIRS["prompt"], PAIRS[kind]) for kind in ("chosen", "rejected"))
        assert trainer.metrics["margin"] == pytest.approx(sum(map(float.__sub__, chosen, rejected)) / 4, abs=1e-3)
    elif kind == "ppo":
        trainer = TrainHFPPO("A", **options).train(**prompts(), reward_model=count_of_t, **SAMPLED)
    else:
        trainer = TrainHFGRPO("A", **options)
        trainer.train(**prompts(), reward_model=count_of_t, num_generations=2, beta=0.1, **SAMPLED)
    assert not getattr(trainer.model, "is_quantized", False)
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    adapter = load_file(trainer.export_to_disk(tmp_path / "adapter", adapter_only=True) / "adapter_model.safetensors")
    # Rounded to bfloat16 after each step, small steps would change nothing.
    assert any((weight != weight.bfloat16().float()).any() for weight in adapter.values())


@pytest.mark.parametrize("adapter", [{"qlora": True}, {"peft_config": LoraConfig(r=4, target_modules="all-linear")}])
def test_a_linear_head_is_trained_whole_and_the_rest_by_the_adapter(session, tiny_encoder, tmp_path, adapter):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    sizes = {"vocab_size": len(tokenizer), "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    model = tiny_models.made(DistilBertModel, DistilBertConfig(**sizes, max_position_embeddings=32))
    folder = str(tiny_models.save(model, tokenizer, tmp_path / "distilbert"))
    reviews = opinions(24)
    spans = [[{"start": 0, "end": len(text.split()[0]), "label": "word"}] for text in reviews["text"]]
    rows = Rows("Reviews", {"text": reviews["text"], "label": reviews["label"], "spans": spans})
    few: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
    text, label, spans_column = (rows.output[name] for name in ("text", "label", "spans"))
    tags = TrainHFTokenClassifier("Spans", folder, **adapter).train(text, spans_column, text, spans_column, **few)
    assert tags.metrics["token_accuracy"] > 0.7
    classes = TrainHFClassifier("Classes", folder, **adapter).train(text, label, text, label, **few)
    found = classes.predict(reviews["text"]).labels
    right = sum(a == b for a, b in zip(found, reviews["label"], strict=True))
    assert classes.metrics["accuracy"] == pytest.approx(right / 24)
    exported = classes.export_to_disk(tmp_path / "adapter", adapter_only=True)
    learned = {name.split(".lora")[0] for name in load_file(exported / "adapter_model.safetensors")}
    heads = {
        f"base_model.model.{head}.{part}" for head in ("pre_classifier", "classifier") for part in ("weight", "bias")
    }
    assert heads <= learned
    assert "base_model.model.distilbert.transformer.layer.0.attention.q_lin" in learned
    before, after = model.get_input_embeddings(), classes.model.get_input_embeddings()
    assert torch.equal(before.weight, after.weight)


def test_a_masked_language_model_keeps_its_tied_head_and_gives_its_encoder_a_new_pooler(
    session, tiny_encoder, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    folder = str(tiny_models.save(tiny_models.bert(tokenizer, BertForMaskedLM), tokenizer, tmp_path / "masked"))
    reviews = opinions(16)
    text, label = (Rows("Reviews", reviews).output[name] for name in ("text", "label"))
    few: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
    masked = TrainHFMaskedLM("Masked", folder, qlora=True).train(text, text, **few)
    assert masked.model.get_output_embeddings().weight is masked.model.get_input_embeddings().weight
    assert masked.curves[-1]["eval_loss"] != masked.curves[0].get("eval_loss")
    own = {
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True),
        "peft_config": LoraConfig(target_modules="all-linear"),
    }
    for adapter in ({"qlora": True}, own):
        trainer = TrainHFClassifier("Classes", folder, **adapter).train(text, label, text, label, **few)
        found = trainer.predict(reviews["text"]).labels
        right = sum(a == b for a, b in zip(found, reviews["label"], strict=True))
        assert trainer.metrics["accuracy"] == pytest.approx(right / 16)


def test_an_embedder_is_saved_as_it_was_scored(session, tiny_encoder):
    reviews = opinions(16)["text"]
    text = Rows("Reviews", {"text": reviews}).output["text"]
    teacher = TrainSentenceTransformer("Teacher", str(tiny_encoder))
    teacher.train_with_positive_pairs(text, text, text, text, epochs=1)
    student = TrainSentenceTransformer("Student", str(tiny_encoder), qlora=True)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2}
    student.train_with_teacher(text, text, teacher=teacher, **options)
    ours, theirs = (torch.tensor(each.model.encode(reviews)) for each in (student, teacher))
    assert student.metrics["loss"] == pytest.approx(float((ours - theirs).square().mean()), rel=1e-2)
    assert student.curves[-1]["eval_loss"] == pytest.approx(student.metrics["loss"], rel=1e-3)


@pytest.mark.parametrize("layers", [1, [1], [0, 1]])
def test_layers_are_cut_before_the_others_are_quantized(session, tiny_encoder, layers):
    reviews = opinions(16)["text"]
    text = Rows("Reviews", {"text": reviews}).output["text"]
    student = TrainSentenceTransformer("Student", str(tiny_encoder), qlora=True, layers=layers)
    columns = dict.fromkeys(("train_anchors", "train_positives", "validation_anchors", "validation_positives"), text)
    student.train_with_positive_pairs(**columns, epochs=1, batch_size=8, learning_rate=1e-3)
    kept = [layers - 1] if isinstance(layers, int) else layers
    inner, source = student.trained.model, AutoModel.from_pretrained(tiny_encoder)
    assert inner.config.num_hidden_layers == len(inner.encoder.layer) == len(kept)
    for new, old in enumerate(kept):
        layers_of = inner.encoder.layer[new], source.encoder.layer[old]
        ours, theirs = (each.intermediate.dense.weight.detach() for each in layers_of)
        assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.5  # 4 bits and an adapter away
    assert student.model.encode(reviews).shape == (16, inner.config.hidden_size)


@pytest.mark.parametrize("options", [{}, {"qlora": True}], ids=["whole", "qlora"])
def test_layers_that_an_embedder_lacks_are_named_as_the_option(session, tiny_encoder, options):
    text = Rows("Reviews", {"text": opinions(16)["text"]}).output["text"]
    student = TrainSentenceTransformer("Student", str(tiny_encoder), layers=9, **options)
    with pytest.raises(MethodMisfit, match='"Student": layers=9 cannot be kept: .* 2 layers'):
        student.train_with_positive_pairs(text, text, text, text, epochs=1)


@pytest.mark.parametrize(
    ("kind", "given", "own"),
    [
        (TrainHFClassifier, "FEATURE_EXTRACTION", "SEQ_CLS"),  # which would leave the new head as it is
        (TrainHFClassifier, TaskType.CAUSAL_LM, "SEQ_CLS"),
        (TrainSetFitClassifier, "FEATURE_EXTRACTION", "SEQ_CLS"),
        (TrainSetFitClassifier, "TOKEN_CLS", "SEQ_CLS"),
        (TrainSentenceTransformer, "CAUSAL_LM", "FEATURE_EXTRACTION"),
        (TrainHFFineTune, "SEQ_CLS", "CAUSAL_LM"),
    ],
)
def test_an_adapter_for_another_type_of_task_is_refused_before_training(
    session, tiny_encoder, tiny_causal_lm, kind, given, own
):
    model, targets = (tiny_causal_lm, "q_proj") if kind is TrainHFFineTune else (tiny_encoder, "query")
    adapter = LoraConfig(task_type=given, target_modules=[targets])
    rows = Rows("Rows", opinions(16)).output
    trainer = kind("It", str(model), device="cpu", peft_config=adapter)
    pairs = [rows["text"]] * 4 if kind is TrainSentenceTransformer else [rows["text"], rows["label"]] * 2
    train = trainer.train_with_positive_pairs if kind is TrainSentenceTransformer else trainer.train
    with pytest.raises(DefinitionError, match=rf'for task_type="{getattr(given, "value", given)}", .* "{own}"\. Leave'):
        train(*pairs, epochs=1)


@pytest.mark.parametrize("kind", [TrainEmbeddingClassifier, TrainStaticClassifier])
def test_trainers_without_an_adapter_refuse_it_by_its_name(tiny_encoder, kind):
    with pytest.raises(DefinitionError, match="no adapter.*Leave peft_config and qlora out"):
        kind("A", str(tiny_encoder), qlora=True)


def test_a_config_of_ones_own_replaces_its_part(tiny_causal_lm):
    own = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = TrainHFFineTune("A", str(tiny_causal_lm), qlora=True, peft_config=own, dtype="bfloat16")
    assert trainer.peft_config is own
    assert trainer.quantization_config.bnb_4bit_quant_type == "nf4"
    assert trainer.quantization_config.bnb_4bit_compute_dtype == torch.bfloat16
    eight = BitsAndBytesConfig(load_in_8bit=True)
    assert TrainHFFineTune("B", str(tiny_causal_lm), qlora=True, quantization_config=eight).quantization_config is eight
    assert TrainHFFineTune("C", str(tiny_causal_lm), qlora=False).peft_config is None
    with pytest.raises(ArgumentTypeError, match="qlora must be True or False, not 4"):
        TrainHFFineTune("D", str(tiny_causal_lm), qlora=4)
    with pytest.raises(DefinitionError, match="quantized weights cannot be trained. Pass a peft_config too"):
        TrainHFFineTune("E", str(tiny_causal_lm), quantization_config=eight)


@pytest.mark.parametrize("method", [Magnitude(0.5), NF4()], ids=str)
def test_a_model_that_was_pruned_or_quantized_here_is_refused_with_what_to_do(
    method: Any, tiny_causal_lm: Path, tmp_path: Path
) -> None:
    start = TrainedModel(tiny_causal_lm)
    folder = TrainedModel.save(method.apply(start.model), start.tokenizer, tmp_path / "small").path
    with DataDreamer(tmp_path / "out", verbose=False):
        rows = Rows("Rows", {"text": ["a b c"] * 4}).output["text"]
        trainer = TrainHFFineTune("Tuned", folder, qlora=True)
        with pytest.raises(MethodMisfit, match=r"pruned or quantized by this package.*with peft_config alone"):
            trainer.train(rows, rows, rows, rows)
