"""Language models teach without the logits of a whole batch: the same losses and gradients, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer

from datadreamer_like.distillation import (
    Combined,
    OnPolicy,
    SoftTargets,
    TeacherModel,
    WordLevel,
    has_plain_head,
)
from datadreamer_like.evaluation.tasks.generation import CausalLM, Seq2SeqLM, TokenMeasure
from datadreamer_like.evaluation.tasks.masked import MaskedLM
from datadreamer_like.trainers import TrainHFFineTune

from .conftest import Rows

LOGITS, FACTORS = frozenset({"logits"}), frozenset({"logits", "factors"})
TEACHER = TeacherModel(torch.nn.Identity(), str)
KINDS: dict[str, dict[str, Any]] = {
    "forward_kl": {}, "reverse_kl": {}, "jsd": {"beta": 0.2}, "skew_kl": {"skew": 0.3}, "skew_reverse_kl": {},
}  # fmt: skip
OBJECTIVES: dict[str, Any] = {
    **{kind: WordLevel(TEACHER, 1.7, 0.3, kind=kind, **options) for kind, options in KINDS.items()},  # type: ignore[arg-type]
    "without labels": WordLevel(TEACHER, alpha=1.0),
    "soft targets": SoftTargets(TEACHER, temperature=3.0, alpha=0.6),
    "on policy": OnPolicy(TEACHER),
    "combined": Combined([WordLevel(TEACHER), SoftTargets(TEACHER)], [1.0, 0.5]),
}


class NoTokenizer:
    pad_token_id = 0
    all_special_ids = (0, 1)
    mask_token_id = 1

    def __len__(self) -> int:
        return tiny_models.VOCABULARY


def case(family: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model, its task and a batch in which prompts and padding have no labels."""
    model = tiny_models.build(family)
    kind = Seq2SeqLM if model.config.is_encoder_decoder else CausalLM
    task: Any = kind(NoTokenizer(), 24)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(3)
    rows = []
    for row, length in enumerate((9, 5, 12)):
        ids = torch.randint(5, tiny_models.VOCABULARY, (length,), generator=random)
        labels = ids if kind is Seq2SeqLM else ids.masked_fill(torch.arange(length) < length // 2, -100)
        rows.append({"row": row, "input_ids": ids.numpy(), "labels": labels.numpy()})
    return model, task, task.collate(rows)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "t5", "bart"])  # tied and untied, scaled states, a bias
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_loss_and_gradients_are_those_of_the_logits(family: str, kind: str) -> None:
    model, task, batch = case(family)
    assert has_plain_head(model)
    teacher = tiny_models.build(family)
    with torch.no_grad():
        teacher.get_output_embeddings().weight.add_(0.3)
        theirs, theirs_in_full = (task.forward(teacher, batch, wants) for wants in (FACTORS, LOGITS))
    objective = OBJECTIVES[kind]
    assert objective.takes_factors
    expected = objective.loss(task.forward(model, batch, LOGITS), theirs_in_full, batch)
    expected.backward()
    wanted = gradients(model)
    ours = task.forward(model, batch, FACTORS)
    assert ours.logits is None
    assert ours.classes == tiny_models.VOCABULARY
    found = objective.loss(ours, theirs, batch)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted.pop(name), rtol=1e-4, atol=1e-5)
    assert not wanted


def test_states_under_autocast_have_the_dtype_of_the_logits() -> None:
    model, task, batch = case("qwen2")
    teacher = tiny_models.made(type(model), model.config, seed=5)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = [task.forward(each, batch, LOGITS) for each in (model, teacher)]
        found = [task.forward(each, batch, FACTORS) for each in (model, teacher)]
    assert found[0].factors.states.dtype == wanted[0].logits.dtype == torch.bfloat16
    torch.testing.assert_close(found[0].factors.logits(), wanted[0].logits)
    losses = [WordLevel(TEACHER).loss(*pair, batch).item() for pair in (wanted, found)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_lacks_tokens_of_the_student_gives_the_loss_of_the_logits(kind: str) -> None:
    model, task, batch = case("llama")
    teacher = tiny_models.build("llama")
    teacher.resize_token_embeddings(tiny_models.VOCABULARY - 8)
    batch = {name: part.clamp(max=tiny_models.VOCABULARY - 9) for name, part in batch.items() if name != "mask"}
    batch["mask"] = batch["labels"] != -100
    objective = WordLevel(TEACHER, alpha=0.5, kind=kind)  # type: ignore[arg-type]
    with torch.no_grad():
        outputs = [[task.forward(each, batch, wants) for each in (model, teacher)] for wants in (LOGITS, FACTORS)]
        expected, found = (float(objective.loss(*pair, batch)) for pair in outputs)
    assert found == pytest.approx(expected, rel=1e-5)


def test_other_positions_of_labels_and_teacher_give_the_loss_of_the_logits() -> None:
    model = tiny_models.build("bert-mlm")
    task = MaskedLM(NoTokenizer(), 24, True, 0.4)  # type: ignore[arg-type]
    plain = task.collate([{"row": row, "input_ids": torch.arange(5, 14 + row).numpy()} for row in range(3)])
    batch = task.drawn(plain, torch.Generator().manual_seed(0))
    assert has_plain_head(model)
    for alpha in (0.5, 1.0):
        objective = WordLevel(TEACHER, alpha=alpha)
        with torch.no_grad():
            teacher = tiny_models.build("bert-mlm")
            teacher.get_output_embeddings().bias.add_(torch.arange(tiny_models.VOCABULARY) / 90)
            pairs = [[task.forward(each, batch, wants) for each in (model, teacher)] for wants in (LOGITS, FACTORS)]
            expected, found = (float(objective.loss(*pair, batch)) for pair in pairs)
            measures = TokenMeasure(), TokenMeasure()
            for measure, pair in zip(measures, pairs, strict=True):
                measure.add(pair[0], batch)
        assert found == pytest.approx(expected, rel=1e-5)
        assert measures[1].result() == pytest.approx(measures[0].result(), rel=1e-5)


def changed(family: str) -> Any:
    sizes = {**tiny_models.SIZES, "num_key_value_heads": 2}
    if family == "capped":
        config: Any = transformers.Gemma2Config(head_dim=8, final_logit_softcapping=5.0, **sizes)
        return tiny_models.made(transformers.Gemma2ForCausalLM, config)
    if family == "scaled":
        config = transformers.GraniteConfig(logits_scaling=3.0, **sizes)
        return tiny_models.made(transformers.GraniteForCausalLM, config)
    if family == "shifted":
        model = tiny_models.build("bart")
        model.final_logits_bias.add_(0.5)  # type: ignore[union-attr, operator]
        return model
    return get_peft_model(tiny_models.build("qwen2"), LoraConfig(target_modules=["lm_head"]))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft uses it
@pytest.mark.parametrize("family", ["capped", "scaled", "shifted", "adapted"])
def test_logits_that_are_not_what_a_linear_layer_gives_are_computed(family: str) -> None:
    model = changed(family)
    state = torch.random.get_rng_state()
    assert not has_plain_head(model.train())
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not has_plain_head(tiny_models.build("bert"))


class Largest(TorchDispatchMode):
    """Records the largest number of elements of a tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else [found]:
            if isinstance(part, torch.Tensor):
                self.numbers = max(self.numbers, part.numel())
        return found


class Watched(TrainHFFineTune):
    """Records the largest tensor of its training run, evaluations included."""

    largest = 0

    def fit(self, run: Any) -> Any:
        with Largest() as mode:
            found = super().fit(run)
        self.largest = mode.numbers
        return found


def test_no_step_of_a_training_run_makes_logits_of_its_whole_batch(session, tiny_causal_lm, tmp_path) -> None:
    words, rows = 1 << 15, 4
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": words}
    model, teacher = (tiny_models.llama(tokenizer, seed=seed, **sizes) for seed in (0, 1))
    folder = tiny_models.save(model, tokenizer, tmp_path / "model")
    text = "a cat sat on a mat and " * 12
    data = Rows("Rows", {"prompt": ["the dog"] * rows, "answer": [text] * rows})
    prompts, answers = data.output["prompt"], data.output["answer"]
    columns = {"train_input": prompts, "train_output": answers}
    columns |= {"validation_input": prompts, "validation_output": answers}
    options: dict[str, Any] = {"epochs": 1, "batch_size": rows, "learning_rate": 1e-3}
    tokens = rows * len(tokenizer(text)["input_ids"])
    numbers, losses = [], []
    for objective in (SoftTargets(TeacherModel(teacher, tokenizer)), Plain(TeacherModel(teacher, tokenizer))):
        trainer = Watched(type(objective).__name__, str(folder))
        trainer.train(**columns, **options, objective=objective)
        numbers.append(trainer.largest)
        losses.append(trainer.metrics["loss"])
    assert numbers[0] < tokens * words / 2 < numbers[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Plain(SoftTargets):
    """Soft targets by the logits."""

    takes_factors = False
