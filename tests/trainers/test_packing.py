"""Packed rows: the loss and the gradients are those of the same rows alone, and no row sees another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from peft import LoraConfig
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from datadreamer_like.distillation import (
    Combined,
    Hidden,
    HiddenStates,
    OnPolicy,
    Outputs,
    SoftTargets,
    StoredTeacher,
    Supervised,
    TeacherModel,
    TopK,
    WordLevel,
)
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.generation import CausalLM
from datadreamer_like.evaluation.tasks.packing import PackedExamples, as_batch, check_packing, pack, packed_inputs
from datadreamer_like.trainers import TrainHFFineTune

LENGTHS = [9, 4, 13, 2, 7, 11, 5]
ROWS = {"text": ["A dog", "The cat sat", "Rain", "A bird"] * 3, "label": ["ran.", "on a mat.", "fell.", "sang."] * 3}


class Ids(Examples):
    """Rows of random tokens, the first two thirds of which are the prompt."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._ids = [random.integers(5, tiny_models.VOCABULARY, length) for length in LENGTHS]
        super().__init__({}, np.array(LENGTHS))

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self._ids[index]
        labels = np.where(np.arange(len(ids)) < max(1, 2 * len(ids) // 3), -100, ids)
        return {"row": index, "input_ids": ids, "labels": labels}


class NoTokenizer:
    pad_token_id = 0


def task() -> CausalLM:
    return CausalLM(NoTokenizer(), 24)  # type: ignore[arg-type]


def sliding() -> Any:
    config = transformers.MistralConfig(num_key_value_heads=2, sliding_window=3, **tiny_models.SIZES)
    return tiny_models.made(transformers.MistralForCausalLM, config)


def moe() -> Any:
    sizes = {**tiny_models.SIZES, "num_key_value_heads": 2, "num_local_experts": 2}
    return tiny_models.made(transformers.MixtralForCausalLM, transformers.MixtralConfig(**sizes))


MODELS: dict[str, Any] = {
    **{family: lambda family=family: tiny_models.build(family) for family in ("llama", "qwen3", "gpt2")},
    "sliding window": sliding,
    "experts": moe,
}


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradients_of_a_packed_batch_are_those_of_the_same_rows_alone(kind: str, kernel: str) -> None:
    # The kernel of experts takes no float64, and softmax in "eager" is in float32.
    dtype = torch.float32 if kind == "experts" else torch.float64
    model = MODELS[kind]().to(dtype)
    model.set_attn_implementation(kernel)
    rows = Ids()
    # The plain formula: each row alone in the model, the mean over all tokens of answers.
    total, tokens = torch.zeros((), dtype=dtype), 0
    for row in range(len(rows)):
        ids, labels = (torch.from_numpy(rows[row][name]) for name in ("input_ids", "labels"))
        logits = model(input_ids=ids[None]).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        tokens += int((labels[1:] != -100).sum())
    alone = total / tokens
    alone.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    packed = PackedExamples(rows, 24, seed=1)
    assert 2 <= len(packed) < len(rows)
    batch = task().collate([packed[index] for index in range(len(packed))])
    outputs = task().forward(model, batch, frozenset({"logits"}))
    loss = Supervised().loss(outputs, None, batch)
    loss.backward()
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=0)
    for name, gradient in expected.items():
        atol = {"experts": 1e-6}.get(kind, 1e-7 if kernel == "eager" else 1e-12)
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-5, atol=atol)
    check_packing(model, tiny_models.VOCABULARY, torch.device("cpu"), "The model")


def test_one_sequence_of_a_whole_batch_as_flash_attention_takes_it_is_the_same() -> None:
    model = tiny_models.build("llama")
    packed = PackedExamples(Ids(), 24, seed=1)
    batch = task().collate([packed[index] for index in range(len(packed))])
    wants = frozenset({"logits", "hidden_states"})
    with torch.no_grad():
        expected = task().forward(model, batch, wants)
        model.config._attn_implementation = "flash_attention_2"
        flat = packed_inputs(model, batch["input_ids"], batch["position_ids"])
        model.config._attn_implementation = "sdpa"
        whole = model(**flat, output_hidden_states=True, use_cache=False)
    assert flat["input_ids"].shape == (1, batch["input_ids"].numel())
    found = as_batch(Outputs(whole.logits, whole.hidden_states), len(packed))
    assert found.logits is not None
    assert expected.logits is not None
    assert found.hidden_states is not None
    assert expected.hidden_states is not None
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(found.logits[:, :-1][mask[:, :-1]], expected.logits[mask[:, :-1]], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-4, atol=1e-5)


def test_every_row_is_in_one_sequence_and_no_sequence_is_too_long() -> None:
    lengths = np.random.default_rng(3).integers(1, 65, 500)
    packs = pack(lengths, 64, seed=5)
    assert sorted(row for rows in packs for row in rows) == list(range(500))
    assert max(int(lengths[rows].sum()) for rows in packs) <= 64
    assert len(packs) <= 1.05 * lengths.sum() / 64 + 1
    assert packs == pack(lengths, 64, seed=5)
    assert packs != pack(lengths, 64, seed=6)


class Leaky(transformers.LlamaForCausalLM):
    """A model in which a row sees those before it in the sequence."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **options: Any
    ) -> Any:
        return super().forward(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **options)


def test_models_that_do_not_separate_rows_are_refused() -> None:
    device = torch.device("cpu")
    leaky = tiny_models.made(Leaky, transformers.LlamaConfig(**tiny_models.SIZES))
    with pytest.raises(MethodMisfit, match="The model, Leaky, does not separate rows in one sequence"):
        check_packing(leaky, tiny_models.VOCABULARY, device, "The model")
    # Their convolutions run over the rows, which in new weights changes no logit by more than a millionth.
    config = transformers.Lfm2Config(
        num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"], **tiny_models.SIZES
    )
    hybrid = tiny_models.made(transformers.Lfm2ForCausalLM, config)
    with pytest.raises(MethodMisfit, match="The model, Lfm2ForCausalLM, does not separate rows"):
        check_packing(hybrid, tiny_models.VOCABULARY, device, "The model")
    config = transformers.MambaConfig(vocab_size=90, hidden_size=16, num_hidden_layers=1, state_size=4)
    mamba = tiny_models.made(transformers.MambaForCausalLM, config)
    with pytest.raises(MethodMisfit, match="The teacher, MambaForCausalLM, takes no position_ids"):
        check_packing(mamba, 90, device, "The teacher")


OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 2, "learning_rate": 3e-3, "max_length": 48}


@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_learns_from_packed_rows_and_is_saved(
    session: Any, tiny_causal_lm: Path, data: Any, adapter: bool
) -> None:
    config = LoraConfig(r=8, target_modules="all-linear") if adapter else None
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm), peft_config=config)
    trainer.train(**data(ROWS, ROWS), **OPTIONS, packing=True)
    losses = [entry["loss"] for entry in trainer.manifest.result["history"]]
    assert losses[-1] < losses[0]
    steps = max(point["step"] for point in trainer.curves)
    assert steps < 3 * len(ROWS["text"]) / 2
    AutoModelForCausalLM.from_pretrained(trainer.model_path)
    AutoTokenizer.from_pretrained(trainer.model_path)


def test_a_live_teacher_reads_the_packed_rows_too(session: Any, tiny_causal_lm: Path, data: Any) -> None:
    teacher = TrainHFFineTune("Teacher", str(tiny_causal_lm)).train(**data(ROWS, ROWS), **OPTIONS)
    student = TrainHFFineTune("Student", str(tiny_causal_lm))
    student.train(**data(ROWS, ROWS), **OPTIONS, objective=WordLevel(teacher), packing=True)
    losses = [entry["loss"] for entry in student.manifest.result["history"]]
    assert losses[-1] < losses[0]


def test_a_stored_teacher_is_asked_for_single_rows_and_teaches_packed_ones_as_a_live_one(
    session: Any, tiny_causal_lm: Path, data: Any, tmp_path: Path
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_causal_lm)
    teacher = TeacherModel(AutoModelForCausalLM.from_pretrained(tiny_causal_lm).eval(), tokenizer)
    asked: list[int] = []
    teacher.model.register_forward_pre_hook(lambda module, args, given: asked.append(0), with_kwargs=True)
    small = tiny_models.llama(tokenizer, hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    folder = tiny_models.save(small, tokenizer, tmp_path / "small")
    stored, curves, calls = StoredTeacher(teacher, [TopK(1000), Hidden([2])]), dict[str, list[float]](), [0]
    for name, each, packing in (("live", teacher, True), ("single", stored, False), ("packed", stored, True)):
        objective: Any = Combined([SoftTargets(each), HiddenStates(each, layers={1: 2})], [1.0, 0.5])
        student = TrainHFFineTune(name, str(folder))
        student.train(**data(ROWS, ROWS), **OPTIONS, objective=objective, packing=packing)
        curves[name] = [entry["loss"] for entry in student.manifest.result["history"]]
        calls.append(len(asked))
    assert curves["packed"] == pytest.approx(curves["live"], rel=5e-3)
    assert curves["packed"] != pytest.approx(curves["single"], rel=5e-3), "other batches"
    assert calls[3] == calls[2] > calls[1]


def test_what_cannot_be_packed_is_refused(session: Any, tiny_causal_lm: Path, tiny_seq2seq: Path, data: Any) -> None:
    columns, trainer = data(ROWS, ROWS), TrainHFFineTune("LM", str(tiny_causal_lm))
    with pytest.raises(DefinitionError, match="packing=True packs rows into sequences of max_length tokens"):
        trainer.train(**columns, packing=True)
    with pytest.raises(ArgumentTypeError, match="packing must be True or False"):
        trainer.train(**columns, packing="bfd")
    teacher = TeacherModel(
        AutoModelForCausalLM.from_pretrained(tiny_causal_lm), AutoTokenizer.from_pretrained(tiny_causal_lm)
    )
    with pytest.raises(MethodMisfit, match="OnPolicy needs each row alone"):
        trainer.train(**columns, packing=True, max_length=32, objective=OnPolicy(teacher))
    with pytest.raises(MethodMisfit, match="is an encoder-decoder, for which rows cannot be packed"):
        TrainHFFineTune("T5", str(tiny_seq2seq)).train(**columns, packing=True, max_length=32)
