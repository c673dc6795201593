"""TrainHFDPO: trl's loop on our columns comes to the formula's weights, resumes after a kill, and trains adapters."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from conftest import SENTENCES
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer
from user_scripts import Script

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MethodMisfit, UnknownModel
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFDPO, TrainHFFineTune

from .conftest import Rows

PAIRS = {
    "prompt": ["The cat sat", "A dog ran", "The bird sang", "Rain fell"],
    "chosen": ["on the warm mat.", "after the red ball.", "in the old tree.", "on the quiet town."],
    "rejected": ["in tea.", "to his friend again today.", "late.", "a short letter."],
}
OPTIONS: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.0, "adam_epsilon": 1e-3}


def columns(rows: dict[str, Any] = PAIRS, validation: dict[str, Any] = PAIRS) -> dict[str, Any]:
    first, second = Rows("Train pairs", rows).output, Rows("Validation pairs", validation).output
    return {
        "train_prompts": first["prompt"], "train_chosen": first["chosen"], "train_rejected": first["rejected"],
        "validation_prompts": second["prompt"], "validation_chosen": second["chosen"],
        "validation_rejected": second["rejected"],
    }  # fmt: skip


def log_probability(model: Any, tokenizer: Any, prompt: str, answer: str) -> torch.Tensor:
    """Of an answer's tokens and of what ends them, without padding."""
    asked = tokenizer.encode(f"<|user|>{prompt}<eos><|assistant|>", add_special_tokens=False)
    ids = torch.tensor([asked + tokenizer.encode(f"{answer}<eos>", add_special_tokens=False)])
    logits = model(ids).logits[0, len(asked) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, ids[0, len(asked) :, None]).sum()


def by_formula(
    model: Any, reference: Any, tokenizer: Any, loss_type: str, beta: float, rows: dict[str, Any] = PAIRS
) -> torch.Tensor:
    losses = []
    for prompt, chosen, rejected in zip(*rows.values(), strict=True):
        margins, lengths = [], []
        for answer in (chosen, rejected):
            with torch.no_grad():
                base = log_probability(reference, tokenizer, prompt, answer)
            margins.append(log_probability(model, tokenizer, prompt, answer) - base)
            lengths.append(len(tokenizer.encode(f"{answer}<eos>", add_special_tokens=False)))
        if loss_type == "sigmoid":
            losses.append(-F.logsigmoid(beta * (margins[0] - margins[1])))
        elif loss_type == "hinge":
            losses.append(torch.relu(1 - beta * (margins[0] - margins[1])))
        else:
            losses.append((margins[0] / lengths[0] - margins[1] / lengths[1] - 1 / (2 * beta)) ** 2)
    return torch.stack(losses).mean()


def test_steps_are_those_of_the_formula(session, tiny_causal_lm):
    trainer = TrainHFDPO("DPO", str(tiny_causal_lm))
    trainer.train(**columns(), dpo_beta=0.3, epochs=3, batch_size=4, **OPTIONS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    model, reference = (AutoModelForCausalLM.from_pretrained(tiny_causal_lm) for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 3)
    for _ in range(3):
        optimizer.zero_grad()
        by_formula(model, reference, tokenizer, "sigmoid", 0.3).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, trainer.model.get_parameter(name), atol=2e-5), name
    with torch.no_grad():
        wanted = by_formula(trainer.model, reference, tokenizer, "sigmoid", 0.3).item()
    assert trainer.metrics["loss"] == pytest.approx(wanted, abs=1e-5)
    assert trainer.metrics["rewards/accuracies"] == 1.0
    assert trainer.card.facts["Method"] == "DPO with trl's loss sigmoid, beta 0.3"
    assert "rafailov2023direct" in "".join(trainer.card.citations)
    assert trainer.card.base_model == str(tiny_causal_lm)


def test_each_validation_row_counts_once_in_a_smaller_last_batch_too(session, tiny_causal_lm):
    rows = {name: [*values, values[1]] for name, values in PAIRS.items()}
    rows["chosen"][-1], rows["rejected"][-1] = rows["rejected"][1], rows["chosen"][1]  # a loss far from the others'
    trainer = TrainHFDPO("DPO", str(tiny_causal_lm))
    trainer.train(**columns(validation=rows), dpo_beta=0.3, epochs=1, batch_size=2, **OPTIONS)
    tokenizer, reference = (each.from_pretrained(tiny_causal_lm) for each in (AutoTokenizer, AutoModelForCausalLM))
    with torch.no_grad():
        each = [
            by_formula(trainer.model, reference, tokenizer, "sigmoid", 0.3, {n: [v[row]] for n, v in rows.items()})
            for row in range(5)
        ]
    assert trainer.metrics["loss"] == pytest.approx(torch.stack(each).mean().item(), abs=1e-5)
    right = sum(loss < torch.tensor(2.0).log() for loss in each) / 5
    assert trainer.metrics["rewards/accuracies"] == pytest.approx(float(right), abs=1e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_other_losses_and_another_reference_are_those_of_the_formula(session, tiny_causal_lm, data, loss_type):
    rows = {"text": PAIRS["prompt"], "label": PAIRS["rejected"]}
    reference = TrainHFFineTune("Reference", str(tiny_causal_lm)).train(
        **data(rows, rows), epochs=2, learning_rate=1e-2
    )
    trainer = TrainHFDPO("DPO", str(tiny_causal_lm))
    trainer.train(
        **columns(),
        loss_type=loss_type,
        ref_model=reference,
        epochs=1,
        batch_size=4,
        **{**OPTIONS, "learning_rate": 0.0},
    )
    with torch.no_grad():
        wanted = by_formula(trainer.model, reference.model, trainer.tokenizer, loss_type, 0.1).item()
    assert trainer.metrics["loss"] == pytest.approx(wanted, rel=1e-4)
    assert "Reference" in [card.name for card in trainer.card.lineage()]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, in this test
@pytest.mark.parametrize("own_reference", [False, True])
def test_an_adapter_is_trained_merged_and_can_be_passed_on_alone(session, tiny_causal_lm, tmp_path, own_reference):
    from peft import LoraConfig, PeftModel

    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    trainer = TrainHFDPO("DPO", str(tiny_causal_lm), peft_config=lora)
    reference = {"ref_model": TrainedModel(tiny_causal_lm)} if own_reference else {}
    trainer.train(**columns(), **reference, epochs=8, batch_size=4, **OPTIONS)
    assert trainer.metrics["loss"] < 0.6
    base = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    assert trainer.trained.num_parameters == sum(weight.numel() for weight in base.parameters())
    frozen = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(trainer.model.get_parameter(frozen), base.get_parameter(frozen))
    folder = trainer.export_to_disk(tmp_path / "adapter", adapter_only=True)
    assert not [path for path in folder.rglob("*") if path.is_dir()]
    with_adapter = PeftModel.from_pretrained(base, str(folder)).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(with_adapter(ids).logits, trainer.model(ids).logits, atol=1e-4, rtol=1e-4)


def test_prompts_are_written_by_the_template_and_pairs_that_do_not_fit_are_left_out(session, tiny_causal_lm, caplog):
    long = {**PAIRS, "prompt": ["The cat " * 40, *PAIRS["prompt"][1:]]}
    trainer = TrainHFDPO("DPO", str(tiny_causal_lm), chat_prompt_template="Q: {{prompt}} A:", system_prompt=None)
    trainer.train(**columns(long), epochs=1, max_length=32, learning_rate=1e-3)
    assert "1 of the train rows are left out" in caplog.text
    asked = [{"role": "user", "content": "Why?"}]
    assert trainer.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == "Q: Why? A:"
    with pytest.raises(DataError, match="1 of the rows have more than the 32 tokens"):
        TrainHFDPO("B", str(tiny_causal_lm)).train(**columns(long), max_length=32, truncate=False)


def test_a_reference_that_does_not_fit_is_refused_before_training(
    session, tiny_causal_lm, tiny_seq2seq, tiny_encoder, tmp_path
):
    tokenizer = tiny_models.byte_pairs(
        [sentence[::-1] for sentence in SENTENCES], 400, ["<pad>", "<bos>", "<eos>"], pad_token="<pad>"
    )
    other = tiny_models.save(tiny_models.llama(tokenizer), tokenizer, tmp_path / "other")
    for reference, reason in {
        tiny_seq2seq: r"the reference, .* is not a causal language model \(t5\)",
        tiny_encoder: r"the reference, .* is not a causal language model \(bert\)",
        other: "The vocabularies of the reference and the model differ",
    }.items():
        with pytest.raises(MethodMisfit, match=reason):
            TrainHFDPO(reference.name, str(tiny_causal_lm)).train(**columns(), ref_model=reference)
    with pytest.raises(UnknownModel, match="There is no model folder"):
        TrainHFDPO("Missing", str(tiny_causal_lm)).train(**columns(), ref_model=tmp_path / "none")


def test_what_cannot_be_trained_is_refused_before_work(session, tiny_causal_lm, tiny_seq2seq):
    given = columns()
    with pytest.raises(DefinitionError, match='"kto_pair" is unknown. It was removed from trl; [^.?]*. There are'):
        TrainHFDPO("A", str(tiny_causal_lm)).train(**given, loss_type="kto_pair")
    with pytest.raises(DefinitionError, match='"sigmoids" is unknown. Did you mean "sigmoid"'):
        TrainHFDPO("B", str(tiny_causal_lm)).train(**given, loss_type="sigmoids")
    with pytest.raises(DefinitionError, match="options are refused: Label smoothing must be greater than 0"):
        TrainHFDPO("Smooth", str(tiny_causal_lm)).train(**given, loss_type="exo_pair")
    with pytest.raises(DefinitionError, match="dpo_beta is 0; it must be over 0"):
        TrainHFDPO("C", str(tiny_causal_lm)).train(**given, dpo_beta=0)
    with pytest.raises(DefinitionError, match='has no option "epoch"'):
        TrainHFDPO("D", str(tiny_causal_lm)).train(**given, epoch=1)
    with pytest.raises(ArgumentTypeError, match="ref_model is of type int"):
        TrainHFDPO("E", str(tiny_causal_lm)).train(**given, ref_model=3)
    with pytest.raises(MethodMisfit, match=r"is not a causal language model \(t5\)"):
        TrainHFDPO("F", str(tiny_seq2seq)).train(**given)
    with pytest.raises(DefinitionError, match='"H".train decides "objective" itself'):
        TrainHFDPO("H", str(tiny_causal_lm)).train(**given, objective=None)
    with pytest.raises(DefinitionError, match='has no option "peft_config": pass it where the trainer is made, to "I"'):
        TrainHFDPO("I", str(tiny_causal_lm)).train(**given, peft_config=None)
    short = Rows("Short", {"text": ["a"]}).output["text"]
    same = {**PAIRS, "rejected": PAIRS["chosen"]}
    with pytest.raises(DataError, match="train_chosen and train_rejected are the same in every row"):
        TrainHFDPO("J", str(tiny_causal_lm)).train(**columns(same))
    with pytest.raises(DefinitionError, match="train_prompts and train_chosen and train_rejected must have the same"):
        TrainHFDPO("G", str(tiny_causal_lm)).train(**{**given, "train_rejected": short})


SCRIPT = """
import sys
from datadreamer_like import DataDreamer
from datadreamer_like.trainers import TrainHFDPO
from tests.trainers.test_dpo import PAIRS, columns

with DataDreamer(sys.argv[1], verbose=False):
    rows = {name: values * 8 for name, values in PAIRS.items()}
    TrainHFDPO("A", sys.argv[2]).train(**columns(rows), epochs=3, batch_size=4, learning_rate=1e-3)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_training_goes_on_and_ends_in_the_same_weights(tiny_causal_lm, tmp_path):
    def script(folder: Path) -> Script:
        return Script(SCRIPT, tmp_path / "script.py", [str(folder), str(tiny_causal_lm)], warm=True)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    script(whole).run()
    process = script(cut).start()
    while not list(cut.glob(".work/*/checkpoints/checkpoint-*/trainer_state.json")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (cut / "a").exists(), "the training was over before it could be killed"
    script(cut).run()
    first, second = (load_file(folder / "a/model/model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((folder / "a/node.json").read_text())["result"] for folder in (whole, cut)]
    assert results[0] == results[1]
