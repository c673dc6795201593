"""TrainHFFineTune: causal and encoder-decoder models learn answers; prompts and padding carry no loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from datadreamer_like.distillation import SoftTargets
from datadreamer_like.errors import DataError, DefinitionError, MethodMisfit, UnknownModel
from datadreamer_like.models import AUTO, HFTransformers
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFFineTune
from datadreamer_like.trainers.training.examples import IGNORED
from datadreamer_like.trainers.training.tasks import Writing

from .conftest import Rows

ROWS = {
    "text": ["The cat sat", "A dog ran", "The bird sang", "Rain fell"] * 8,
    "label": ["on the warm mat.", "after the red ball.", "in the old tree.", "on the quiet town."] * 8,
}
OPTIONS: dict[str, Any] = {"epochs": 10, "batch_size": 8, "learning_rate": 3e-3}


def answer(trainer: TrainHFFineTune, prompt: str, chat: bool) -> str:
    tokenizer, model = trainer.tokenizer, trainer.model
    text = f"<|user|>{prompt}<eos><|assistant|>" if chat else prompt
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not chat, return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    ids = ids[0] if trainer.trained.task == "text2text-generation" else ids[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_a_causal_model_learns_the_answers_and_to_stop(session, tiny_causal_lm, data):
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm)).train(**data(ROWS, ROWS), **OPTIONS)
    losses = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert losses[-1] < losses[0] / 2
    assert trainer.metrics["perplexity"] == pytest.approx(math.exp(trainer.metrics["cross_entropy"]), rel=1e-3)
    assert answer(trainer, "The cat sat", chat=True) == "on the warm mat."
    assert AutoModelForCausalLM.from_pretrained(trainer.model_path).num_parameters() == trainer.trained.num_parameters
    assert trainer.trained.task == "text-generation"


def test_an_encoder_decoder_learns_the_answers(session, tiny_seq2seq, data):
    trainer = TrainHFFineTune("T5", str(tiny_seq2seq)).train(**data(ROWS, ROWS), **{**OPTIONS, "epochs": 15})
    losses = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert losses[-1] < losses[0] / 2
    assert answer(trainer, "A dog ran", chat=False) == "after the red ball."
    AutoModelForSeq2SeqLM.from_pretrained(trainer.model_path)
    assert trainer.trained.task == "text2text-generation"


def test_lora_on_a_causal_model_is_merged(session, tiny_causal_lm, data):
    from peft import LoraConfig

    trainer = TrainHFFineTune("LM", str(tiny_causal_lm), peft_config=LoraConfig(r=8, target_modules="all-linear"))
    trainer.train(**data(ROWS, ROWS), **{**OPTIONS, "learning_rate": 1e-2})
    losses = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert losses[-1] < 0.8 * losses[0]
    base = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    assert torch.equal(trainer.model.get_input_embeddings().weight, base.get_input_embeddings().weight)
    changed = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(trainer.model.get_parameter(changed), base.get_parameter(changed))
    assert trainer.trained.num_parameters == sum(p.numel() for p in base.parameters())


def encoded(tokenizer: Any, folder: Any, prompt: str, text: str, **options: Any) -> dict[str, Any]:
    task = Writing(tokenizer, options.pop("max_length", 64), options.pop("truncate", True), **options)
    rows = Rows("rows", {"prompt": [prompt], "text": [text]}).output
    row = task.read(rows["prompt"], rows["text"], ("train_input", "train_output"), folder / "x")[0]
    learnt = [token for token in row["labels"].tolist() if token != IGNORED]
    return {"all": tokenizer.decode(row["input_ids"].tolist()), "learnt": tokenizer.decode(learnt)}


def test_prompts_are_dressed_as_asked_and_carry_no_loss(tiny_causal_lm, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    said = {"prompt": "The cat", "text": "sat."}
    assert encoded(tokenizer, tmp_path, **said) == {
        "all": "<|user|>The cat<eos><|assistant|>sat.<eos>",
        "learnt": "sat.<eos>",
    }
    dressed = encoded(tokenizer, tmp_path, **said, system_prompt="Rain")
    assert dressed["all"].startswith("<|system|>Rain<eos><|user|>")
    assert encoded(tokenizer, tmp_path, **said, chat_prompt_template=None)["all"] == "The catsat.<eos>"
    text = encoded(tokenizer, tmp_path, **said, chat_prompt_template="Q {{prompt}} A ")
    assert text == {"all": "Q The cat A sat.<eos>", "learnt": "sat.<eos>"}
    jinja = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    assert encoded(tokenizer, tmp_path, **said, chat_prompt_template=jinja)["learnt"] == "[sat.]<eos>"


def test_long_rows_are_cut_or_refused_and_rows_without_an_answer_left_out(session, tiny_causal_lm, data, caplog):
    long = {"text": ["The cat " * 40, "A dog"], "label": ["sat.", "ran."]}
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm))
    trainer.train(**data(long, ROWS), epochs=1, max_length=32)
    assert "1 of the train rows are left out" in caplog.text
    with pytest.raises(DataError, match="1 of the rows have more than the 32 tokens that fit; the first is row 0"):
        TrainHFFineTune("B", str(tiny_causal_lm)).train(**data(long, ROWS), max_length=32, truncate=False)
    hopeless = {"text": ["The cat " * 40], "label": ["sat."]}
    with pytest.raises(DataError, match="in none of the 1 rows"):
        TrainHFFineTune("C", str(tiny_causal_lm)).train(**data(hopeless, ROWS), max_length=32)


@pytest.mark.parametrize("template", [None, "Q: {{prompt}} A:"])
def test_a_model_is_asked_as_it_was_taught(session, tiny_causal_lm, data, tmp_path, template):
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm), chat_prompt_template=template, system_prompt="Be brief.")
    trainer.train(**data(ROWS, ROWS), **{**OPTIONS, "epochs": 2})
    folder = trainer.export_to_disk(tmp_path / "exported")
    for model in (trainer, trainer.model_path, folder):
        llm = HFTransformers(model)
        assert (llm.chat_prompt_template, llm.system_prompt) == (template, "Be brief.")
    told = HFTransformers(trainer.model_path, chat_prompt_template=template, system_prompt="Be brief.")
    asked = {"prompts": ["The cat sat"], "max_new_tokens": 8, "temperature": 0.0}
    assert HFTransformers(folder).run(**asked) == told.run(**asked)
    assert HFTransformers(str(tiny_causal_lm)).chat_prompt_template is AUTO


def test_a_template_without_a_place_for_the_prompt_is_refused(tiny_causal_lm):
    # It would be taken for Jinja code, and all prompts and answers alike would become that one text.
    with pytest.raises(DefinitionError, match="'Answer briefly.' has no place for the prompt"):
        TrainHFFineTune("LM", str(tiny_causal_lm), chat_prompt_template="Answer briefly.")


def test_what_cannot_learn_to_write_or_teach_it_is_refused_before_training(
    session, tiny_causal_lm, tiny_seq2seq, tiny_encoder, data, tmp_path
):
    columns = data(ROWS, ROWS)
    with pytest.raises(MethodMisfit, match=r"is an encoder \(bert\), which sees the answer"):
        TrainHFFineTune("Encoder", str(tiny_encoder)).train(**columns)
    with pytest.raises(MethodMisfit, match="is causal, and the student is an encoder-decoder"):
        TrainHFFineTune("Student", str(tiny_seq2seq)).train(
            **columns, objective=SoftTargets(TrainedModel.load(tiny_causal_lm))
        )
    with pytest.raises(UnknownModel, match="There is no model folder"):
        TrainHFFineTune("Nothing", str(tmp_path / "typo")).train(**columns)
