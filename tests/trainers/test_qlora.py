"""qlora=True: an adapter is trained on 4-bit weights, and the saved model is the one that was scored."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from datadreamer_like.errors import ArgumentTypeError, DefinitionError
from datadreamer_like.trainers import (
    TrainHFClassifier,
    TrainHFDPO,
    TrainHFFineTune,
    TrainHFGRPO,
    TrainHFPPO,
    TrainHFRewardModel,
)  # fmt: skip
from datadreamer_like.trainers.training.adapters import prepared_codes, with_adapter

from .conftest import Rows
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
def test_every_trainer_takes_it(session, tiny_causal_lm, tiny_encoder, data, kind):
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
