"""TrainHFFineTune: causal and encoder-decoder models learn answers; prompts and padding carry no loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_models
import torch
from hostile import HOSTILE
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from datadreamer_like.distillation import SoftTargets
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import DataError, DefinitionError, MethodMisfit, UnknownModel
from datadreamer_like.evaluation.tasks.generation import CausalLM, Seq2SeqLM
from datadreamer_like.models import HFTransformers, Request, Sampling
from datadreamer_like.models.trained.prompt_template import render, set_prompt_template
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFFineTune
from datadreamer_like.trainers.training.adapters import with_adapter
from datadreamer_like.trainers.training.noise import noise_in_all_embeddings

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


@pytest.mark.parametrize("size", [1, 3, 32])
def test_the_validation_loss_is_a_mean_over_the_answers_tokens_however_they_fall_into_batches(
    session, tiny_causal_lm, data, size
):
    rows = {"text": ROWS["text"][:7], "label": [" ".join(["red"] * number) for number in (1, 9, 2, 30, 4, 1, 17)]}
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm)).train(
        **data(ROWS, rows), epochs=1, learning_rate=0.0, per_device_eval_batch_size=size
    )
    assert trainer.metrics["loss"] == pytest.approx(trainer.metrics["cross_entropy"], rel=1e-4)
    assert trainer.metrics["loss"] == pytest.approx(math.log(trainer.metrics["perplexity"]), rel=1e-3)


def test_an_encoder_decoder_learns_the_answers(session, tiny_seq2seq, data):
    trainer = TrainHFFineTune("T5", str(tiny_seq2seq)).train(**data(ROWS, ROWS), **{**OPTIONS, "epochs": 15})
    losses = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert losses[-1] < losses[0] / 2
    assert answer(trainer, "A dog ran", chat=False) == "after the red ball."
    AutoModelForSeq2SeqLM.from_pretrained(trainer.model_path)
    assert trainer.trained.task == "text2text-generation"


@pytest.mark.parametrize("family", ["t5", "bart", "llama", "two vocabularies"])
@pytest.mark.parametrize("adapter", [False, True])
def test_noise_is_added_in_every_embedding_of_tokens_and_only_while_training(family, adapter):
    from peft import LoraConfig

    model: Any = tiny_models.build(family) if family != "two vocabularies" else _of_two_vocabularies()
    ids = torch.arange(12).view(2, 6)
    batch = tiny_models.batches(model, 1)[0] if family != "two vocabularies" else dict.fromkeys(_BOTH, ids)
    without = [state.detach() for state in _embedded(model, batch)]
    trained = with_adapter(model, LoraConfig(r=2, target_modules="all-linear"), None) if adapter else model
    with noise_in_all_embeddings(trained, 5.0):
        handle = activate_neftune(trained, 5.0)
        for before, noisy in zip(without, _embedded(model.train(), batch), strict=True):
            noise = (noisy - before).abs()
            assert (noise > 0).float().mean() > 0.99
            assert noise.max() <= 5.0 / math.sqrt(before.shape[1] * before.shape[2]) + 1e-6
        assert all(map(torch.equal, without, _embedded(model.eval(), batch)))
        deactivate_neftune(trained, handle)
    assert all(map(torch.equal, without, _embedded(model.train(), batch)))


_BOTH = ("input_ids", "decoder_input_ids")


def _of_two_vocabularies() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = [
        BertConfig(vocab_size=size, **sizes, **decoder)
        for size, decoder in ((30, {}), (40, {"is_decoder": True, "add_cross_attention": True}))
    ]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    torch.manual_seed(0)
    return EncoderDecoderModel(config).eval()


def _embedded(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    """What the embeddings of tokens give, in the order in which they are called."""
    found: list[torch.Tensor] = []
    named = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Embedding)}
    tokens = [each for name, each in named.items() if name.endswith(("word_embeddings", "embed_tokens", "shared"))]
    handles = [each.register_forward_hook(lambda *called: found.append(called[-1])) for each in tokens]
    model(**batch)
    for handle in handles:
        handle.remove()
    return found


def test_noise_changes_what_an_encoder_decoder_learns(session, tiny_seq2seq, data):
    options = {**OPTIONS, "epochs": 1}
    losses = []
    for alpha in (None, 5.0):
        trainer = TrainHFFineTune(f"T5 {alpha}", str(tiny_seq2seq))
        losses.append(trainer.train(**data(ROWS, ROWS), **options, neftune_noise_alpha=alpha).metrics["loss"])
    assert losses[0] != losses[1]


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


def encoded(tokenizer: Any, folder: Any, prompt: str, text: str, **template: Any) -> dict[str, Any]:
    set_prompt_template(tokenizer, **template)
    rows = Rows("rows", {"prompt": [prompt], "text": [text]}).output
    columns = {"train_input": rows["prompt"], "train_output": rows["text"]}
    row = CausalLM(tokenizer, 64).encode(columns, folder / "x")[0]
    targets = [token for token in row["labels"].tolist() if token != IGNORED_LABEL]
    return {"all": tokenizer.decode(row["input_ids"].tolist()), "targets": tokenizer.decode(targets)}


BRACKETS = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


@pytest.mark.parametrize(
    ("template", "whole", "targets"),
    [
        ({}, "<|user|>The cat<eos><|assistant|>sat.<eos>", "sat.<eos>"),
        (
            {"system_prompt": 'Say "{{x}}"\n'},
            '<|system|>Say "{{x}}"\n<eos><|user|>The cat<eos><|assistant|>sat.<eos>',
            None,
        ),
        ({"template": None}, "The catsat.<eos>", "sat.<eos>"),
        ({"template": None, "system_prompt": "Rain"}, "Rain\n\nThe catsat.<eos>", "sat.<eos>"),
        ({"template": "Q {{prompt}} A "}, "Q The cat A sat.<eos>", "sat.<eos>"),
        (
            {"template": "{{system_prompt}}:\n{% {{ prompt }}", "system_prompt": "é🙂"},
            "é🙂:\n{% The catsat.<eos>",
            None,
        ),
        ({"template": BRACKETS}, "[The cat][sat.]<eos>", "[sat.]<eos>"),
        ({"template": BRACKETS, "system_prompt": "Rain"}, "[Rain][The cat][sat.]<eos>", "[sat.]<eos>"),
    ],
)
def test_the_template_is_part_of_the_tokenizer_and_prompts_carry_no_loss(
    tiny_causal_lm, tmp_path, template, whole, targets
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    found = encoded(tokenizer, tmp_path, "The cat", "sat.", **template)
    assert found["all"] == whole
    assert targets is None or found["targets"] == targets


def test_a_text_template_writes_the_special_tokens_that_the_tokenizer_would(tiny_causal_lm, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    ends = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    assert (
        encoded(tokenizer, tmp_path, "The cat", "sat.", template="Q {{prompt}} A ")["all"]
        == "<bos>Q The cat A sat.<eos>"
    )
    assert encoded(tokenizer, tmp_path, "The cat", "sat.", template=None)["all"] == "<bos>The catsat.<eos>"
    set_prompt_template(tokenizer, "Q {{prompt}} A", encoder_decoder=True)
    prompt, answer = next(Seq2SeqLM(tokenizer, 64).encoded([("The cat", "sat.")]))
    assert tokenizer.decode(prompt) == "<bos>Q The cat A<eos>"
    assert tokenizer.decode(answer) == "<bos>sat.<eos>"


RAISING = {
    "system refused": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    "missing key": "{{ messages[0]['name']['first'] }}",
    "missing message": "{{ messages[7].content }}",
    "other types": "{{ messages[0]['content'] + 1 }}",
    "arithmetic": "{{ 1 // 0 }}{{ messages }}",
    "syntax": "{% for message in messages %}",
    "forbidden": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("kind", RAISING)
def test_a_template_that_refuses_the_prompt_is_one_clear_error(session, tiny_causal_lm, data, kind):
    template = RAISING[kind] + (BRACKETS if kind != "syntax" else "")
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm), chat_prompt_template=template, system_prompt="Be brief.")
    with pytest.raises(MethodMisfit, match="The chat template refuses the prompt 'The cat sat': ."):
        trainer.train(**data(ROWS, ROWS), epochs=1)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_prompts_and_templates_say_is_no_code(tiny_causal_lm, text):
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    set_prompt_template(tokenizer, f"{text}|{{{{prompt}}}}|{text}", None)
    assert render(tokenizer, text, "yes")[0] == f"{text}|{text}|{text}"
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    set_prompt_template(tokenizer, BRACKETS, text)
    assert render(tokenizer, text, text) == (f"[{text}][{text}]", f"[{text}]")


def test_a_template_that_wants_turns_in_order_is_no_obstacle(session, tiny_causal_lm, data):
    turns = (
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    )
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm), chat_prompt_template=turns + BRACKETS)
    assert trainer.train(**data(ROWS, ROWS), epochs=1).metrics["cross_entropy"] > 0


def test_long_rows_are_cut_or_refused_and_rows_without_an_answer_left_out(session, tiny_causal_lm, data, caplog):
    long = {"text": ["The cat " * 40, "A dog"], "label": ["sat.", "ran."]}
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm))
    trainer.train(**data(long, ROWS), epochs=1, max_length=32)
    assert "1 of the train rows are left out" in caplog.text
    with pytest.raises(DataError, match="1 of the rows have more than the 32 tokens that fit; the first is row 0"):
        TrainHFFineTune("B", str(tiny_causal_lm)).train(**data(long, ROWS), max_length=32, truncate=False)
    hopeless = {"text": ["The cat " * 40], "label": ["sat."]}
    with pytest.raises(DataError, match="none of the 1 rows"):
        TrainHFFineTune("C", str(tiny_causal_lm)).train(**data(hopeless, ROWS), max_length=32)


@pytest.mark.parametrize("template", [None, "Q: {{prompt}} A:", BRACKETS])
def test_a_model_is_asked_with_the_template_that_it_was_trained_with(session, tiny_causal_lm, data, tmp_path, template):
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm), chat_prompt_template=template, system_prompt="Be brief.")
    trainer.train(**data(ROWS, ROWS), **{**OPTIONS, "epochs": 2})
    folder = trainer.export_to_disk(tmp_path / "exported")
    assert [*trainer.export("gguf", to=tmp_path / "gguf").glob("*.gguf")]  # compared on texts of its own
    asked = {"prompts": ["The cat sat"], "max_new_tokens": 8, "temperature": 0.0}
    told = HFTransformers(trainer.model_path, chat_prompt_template=template, system_prompt="Be brief.")
    request = Request("The cat sat", Sampling())
    for model in (trainer, trainer.model_path, folder):
        llm = HFTransformers(model)
        assert llm._ids(request) == told._ids(request)
        assert llm.run(**asked) == told.run(**asked)


def test_a_template_without_a_place_for_the_prompt_is_refused(tiny_causal_lm):
    # It would be taken for Jinja code, and all prompts and answers alike would become that one text.
    with pytest.raises(DefinitionError, match="'Answer briefly.' has no place for the prompt"):
        TrainHFFineTune("LM", str(tiny_causal_lm), chat_prompt_template="Answer briefly.")


def test_what_cannot_learn_to_write_or_teach_it_is_refused_before_training(
    session, tiny_causal_lm, tiny_seq2seq, tiny_encoder, data, tmp_path
):
    columns = data(ROWS, ROWS)
    with pytest.raises(MethodMisfit, match=r"is an encoder \(bert\), which sees the target tokens"):
        TrainHFFineTune("Encoder", str(tiny_encoder)).train(**columns)
    with pytest.raises(MethodMisfit, match="is causal, and the student is an encoder-decoder"):
        TrainHFFineTune("Student", str(tiny_seq2seq)).train(
            **columns, objective=SoftTargets(TrainedModel.load(tiny_causal_lm))
        )
    with pytest.raises(UnknownModel, match="There is no model folder"):
        TrainHFFineTune("Nothing", str(tmp_path / "typo")).train(**columns)
