"""A model with a merged adapter answers as it did in training, also where weights are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from datadreamer_like import quantization
from datadreamer_like.errors import DefinitionError, MethodMisfit, UnknownModel
from datadreamer_like.models import HFTransformers
from datadreamer_like.trainers import TrainHFFineTune
from datadreamer_like.trainers.training.adapters import check_merge, merged, with_adapter

from .conftest import Rows

CASES = [
    *[(family, {"target_modules": "all-linear"}) for family in ("llama", "qwen2", "t5", "bart", "bert")],
    ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    ("llama", {"target_modules": ["embed_tokens"]}),
    ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    ("llama", {"target_modules": ["lm_head"], "use_dora": True}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ("llama", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]}),
    ("gpt2", {"target_modules": ["lm_head"]}),
    ("gpt2", {"target_modules": ["wte", "c_attn"]}),
    ("qwen2", {"target_modules": ["lm_head", "q_proj"]}),
    ("t5", {"target_modules": ["lm_head"]}),
    ("t5", {"target_modules": ["q", "embed_tokens"]}),
    ("t5", {"target_modules": ["q"], "modules_to_save": ["lm_head"]}),
    ("bart", {"target_modules": ["lm_head", "v_proj"]}),
    ("bart", {"target_modules": ["embed_tokens"]}),
    ("bert-mlm", {"target_modules": ["word_embeddings"]}),
]


def named(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(f"{name}:{value}" for name, value in case[1].items())])


@pytest.mark.parametrize("case", CASES, ids=named)
def test_logits_are_the_same_in_training_merged_and_after_loading(case, tmp_path: Path):
    family, options = case
    model = tiny_models.build(family)
    batch = tiny_models.batches(model)[0]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = batch["input_ids"][:, :4]
    config = LoraConfig(r=4, fan_in_fan_out=family == "gpt2" and options["target_modules"] != ["lm_head"], **options)
    adapted = with_adapter(model, config, None)
    check_merge(
        adapted, lambda: with_adapter(tiny_models.build(family), config, None), inputs, type(model).from_pretrained,
        tmp_path / "trial",
    )  # fmt: skip
    assert not (tmp_path / "trial").exists()
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.double().eval()  # so that only a wrong merge makes a difference
    with torch.no_grad():
        scored = adapted(**inputs).logits
        small = merged(adapted).eval()
        small.save_pretrained(tmp_path / "saved")
        loaded = type(model).from_pretrained(tmp_path / "saved", dtype=torch.float64).eval()
        assert (scored - tiny_models.build(family)(**inputs).logits).abs().max() > 0.05  # the adapter does something
        torch.testing.assert_close(small(**inputs).logits, scored, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(loaded(**inputs).logits, scored, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("targets", ["c_attn", r".*\.attn\.c_proj"], ids=["wide", "square"])
@pytest.mark.parametrize(
    "method",
    [quantization.NF4(), quantization.GOBO(3), quantization.AbsMax(4, granularity=16), quantization.Binary()],
    ids=lambda method: type(method).__name__,
)
def test_an_adapter_on_codes_of_a_conv1d_is_merged_as_it_was_trained(method, targets):
    model = method.apply(tiny_models.build("gpt2"))
    inputs = {name: value for name, value in tiny_models.batches(model)[0].items() if name != "labels"}
    targeted = targets if targets.startswith(".") else [targets]
    adapted = with_adapter(model, LoraConfig(r=4, target_modules=targeted, init_lora_weights=False), None).eval()
    with torch.no_grad():
        trained = adapted(**inputs).logits
        torch.testing.assert_close(merged(adapted).eval()(**inputs).logits, trained, atol=1e-3, rtol=1e-3)


def test_warnings_of_peft_about_other_things_than_shared_weights_are_shown():
    nothing_to_tie = LoraConfig(target_modules=["q_proj"], ensure_weight_tying=True)
    with pytest.warns(UserWarning, match="no tied modules are added"):
        with_adapter(tiny_models.build("llama"), nothing_to_tie, None)


def test_shared_weights_that_cannot_be_saved_apart_are_refused_before_training(tmp_path: Path):
    model = tiny_models.build("llama")
    config = LoraConfig(target_modules=["lm_head"])

    def loaded_as_shared(folder: Path) -> Any:
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.lm_head.weight = model.get_input_embeddings().weight
        return model

    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    adapted = with_adapter(model, config, None)
    with pytest.raises(MethodMisfit, match="lm_head, whose weights LlamaForCausalLM shares"):
        check_merge(
            adapted,
            lambda: with_adapter(tiny_models.build("llama"), config, None),
            inputs,
            loaded_as_shared,
            tmp_path / "t",
        )


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_card_of_a_trainer_holds_the_loss_of_the_saved_model(session, tiny_causal_lm, tiny_seq2seq, kind):
    pairs = [("the cat", " sat"), ("the dog", " ran"), ("a bird", " sang")] * 2
    prompts, answers = (list(part) for part in zip(*pairs, strict=True))
    rows = Rows("rows", {"prompt": prompts, "answer": answers}).output
    columns = [rows["prompt"], rows["answer"]] * 2
    start = tiny_causal_lm if kind == "causal" else tiny_seq2seq
    names = ["q_proj", "lm_head"] if kind == "causal" else ["q", "lm_head"]
    trainer = TrainHFFineTune(
        "tied", start, chat_prompt_template=None, peft_config=LoraConfig(r=4, target_modules=names)
    )
    trainer.train(*columns, epochs=2, batch_size=2, learning_rate=3e-2)
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    model, tokenizer = auto.from_pretrained(trainer.path).eval(), AutoTokenizer.from_pretrained(trainer.path)
    total, tokens = 0.0, 0
    for prompt, answer in pairs:
        given, wanted = tokenizer(prompt)["input_ids"], tokenizer(answer, add_special_tokens=False)["input_ids"]
        if given[-1] == tokenizer.eos_token_id and kind == "causal":
            given = given[:-1]
        wanted = [*wanted, tokenizer.eos_token_id]
        with torch.no_grad():
            if kind == "causal":
                said = model(torch.tensor([given + wanted])).logits[0, len(given) - 1 : -1]
            else:
                said = model(input_ids=torch.tensor([given]), labels=torch.tensor([wanted])).logits[0]
        total -= float(said.log_softmax(-1).gather(-1, torch.tensor(wanted)[:, None]).sum())
        tokens += len(wanted)
    assert trainer.card.metrics["cross_entropy"] == pytest.approx(total / tokens, abs=1e-4)


def test_an_adapter_that_cannot_be_merged_is_refused_before_training(session, tiny_causal_lm):
    rows = Rows("rows", {"prompt": ["the cat"], "answer": ["sat"]}).output
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    trainer = TrainHFFineTune("prompts", tiny_causal_lm, peft_config=config)
    with pytest.raises(DefinitionError, match="PromptTuningConfig cannot be merged"):
        trainer.train(rows["prompt"], rows["answer"], rows["prompt"], rows["answer"], epochs=1)
    unfit = TrainHFFineTune("unfit", tiny_causal_lm, peft_config=LoraConfig(target_modules=["query_key_value"]))
    with pytest.raises(MethodMisfit, match="query_key_value"):
        unfit.train(rows["prompt"], rows["answer"], rows["prompt"], rows["answer"], epochs=1)


def test_the_adapter_of_a_trainer_is_found_by_its_model_path(session, tiny_causal_lm, tmp_path):
    rows = Rows("rows", {"prompt": ["the cat", "the dog"], "answer": ["ran", "sang"]}).output
    columns = [rows["prompt"], rows["answer"]] * 2
    trainer = TrainHFFineTune("a", tiny_causal_lm, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    trainer.train(*columns, epochs=20, batch_size=2, learning_rate=3e-2)
    asked = {"max_new_tokens": 4, "temperature": 0.0}
    merged_one = HFTransformers(trainer).run(["the cat", "the dog"], **asked)
    assert merged_one != HFTransformers(tiny_causal_lm).run(["the cat", "the dog"], **asked)
    alone = trainer.export(to=tmp_path / "whole").parent / "alone"
    trainer.export_to_disk(alone, adapter_only=True)
    for adapter in (trainer.model_path, trainer, Path(trainer.model_path).parent, alone):
        assert HFTransformers(tiny_causal_lm, adapter_name=adapter).run(["the cat", "the dog"], **asked) == merged_one
    with pytest.raises(UnknownModel, match="holds no adapter"):
        HFTransformers(tiny_causal_lm, adapter_name=tmp_path / "whole")
