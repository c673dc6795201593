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
    DistilBERT,
    HardTargets,
    OnPolicy,
    Outputs,
    SequenceLevel,
    SoftTargets,
    SparseTargets,
    Supervised,
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
    "supervised": Supervised(),
    "hard targets": HardTargets(TEACHER),
    "the teacher's answers": SequenceLevel(TEACHER),
    "both answers": SequenceLevel(TEACHER, alpha=0.3),
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
    return model, task, {**task.collate(rows), "written": torch.tensor([True, False, True])}


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


MASKED: dict[str, Any] = {
    "supervised": Supervised(),
    "hard targets": HardTargets(TEACHER),
    "word level": WordLevel(TEACHER, alpha=0.5),
    "without labels": WordLevel(TEACHER, alpha=1.0),
    "labels alone": WordLevel(TEACHER, alpha=0.0),
    "soft targets": SoftTargets(TEACHER, temperature=3.0, alpha=0.6),
    "triple loss": DistilBERT(TEACHER),
}


def masked_case() -> tuple[Any, Any, Any, dict[str, torch.Tensor]]:
    """Two models of masked tokens in float64, their task, and a batch of which some tokens have labels."""
    model, teacher = (tiny_models.build("bert-mlm").double() for _ in range(2))
    with torch.no_grad():
        teacher.get_output_embeddings().bias.add_(torch.arange(tiny_models.VOCABULARY) / 90)
    task = MaskedLM(NoTokenizer(), 24, True, 0.4)  # type: ignore[arg-type]
    plain = task.collate([{"row": row, "input_ids": torch.arange(5, 14 + row).numpy()} for row in range(3)])
    return model, teacher, task, task.drawn(plain, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", MASKED)
def test_where_some_tokens_have_labels_loss_means_and_gradients_are_those_of_the_logits(kind: str) -> None:
    model, teacher, task, batch = masked_case()
    objective = MASKED[kind]
    assert has_plain_head(model)
    assert objective.takes_factors
    losses, parts, slopes, measures = [], [], [], []
    for wants in (LOGITS, FACTORS):
        with torch.no_grad():
            theirs = task.forward(teacher, batch, wants | objective.wants)
        ours = task.forward(model, batch, wants | objective.wants)
        parts.append([(mean.value.item(), int(mean.weight)) for mean in objective.means(ours, theirs, batch)])
        losses.append(objective.loss(ours, theirs, batch))
        losses[-1].backward()
        slopes.append(gradients(model))
        measures.append(TokenMeasure())
        with torch.no_grad():
            measures[-1].add(ours, batch)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-12)
    assert sum(value for value, _ in parts[1]) == pytest.approx(losses[0].item(), rel=1e-6)
    for found, expected in zip(parts[1], parts[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-9)
    assert slopes[0].keys() == slopes[1].keys()
    for name, slope in slopes[1].items():
        torch.testing.assert_close(slope, slopes[0][name], rtol=1e-7, atol=1e-10)
    assert measures[1].result() == pytest.approx(measures[0].result(), rel=1e-5)


@pytest.mark.parametrize(
    "objective", [SoftTargets(TEACHER, 1.0, 0.6), WordLevel(TEACHER, alpha=1.0), HardTargets(TEACHER)]
)
def test_stored_targets_give_the_loss_and_gradients_of_the_logits(objective: Any) -> None:
    model, task, batch = case("gpt2")
    shape = batch["labels"].shape
    ids = torch.randint(tiny_models.VOCABULARY, (*shape, 1), generator=torch.Generator().manual_seed(2))
    half = torch.full((*shape, 1), 0.5).log()
    teacher = Outputs(targets=SparseTargets(ids, half, half.expand(*shape, 2), "bucket", (1.0, 3.0)))
    losses, slopes = [], []
    for wants in (LOGITS, FACTORS):
        losses.append(objective.loss(task.forward(model, batch, wants), teacher, batch))
        losses[-1].backward()
        slopes.append(gradients(model))
    torch.testing.assert_close(losses[1], losses[0])
    for name, slope in slopes[1].items():
        torch.testing.assert_close(slope, slopes[0][name], rtol=1e-4, atol=1e-6)


class Once(WordLevel):
    """Counts how often its terms are computed."""

    count = 0

    def loss(self, *args: Any, **options: Any) -> Any:
        Once.count += 1
        return super().loss(*args, **options)


def test_a_subclass_with_another_loss_has_means_of_that_loss() -> None:
    model, teacher, task, batch = masked_case()
    with torch.no_grad():
        pair = [task.forward(each, batch, LOGITS) for each in (model, teacher)]
        own = Once(TEACHER, alpha=0.5)
        assert not own.takes_factors
        found, expected = own.means(*pair, batch), WordLevel(TEACHER, alpha=0.5).means(*pair, batch)
    assert Once.count == 2
    torch.testing.assert_close(found, expected)


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


def test_logits_are_computed_for_tokens_with_labels_alone(session, tiny_causal_lm, tmp_path) -> None:
    words, rows = 1 << 15, 4
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": words}
    folder = tiny_models.save(tiny_models.llama(tokenizer, **sizes), tokenizer, tmp_path / "model")
    text = "a cat sat on a mat and " * 12
    data = Rows("Rows", {"prompt": [text] * rows, "answer": ["the dog ran to the cat"] * rows}).output
    columns = {f"{split}_{which}": data[name] for split in ("train", "validation")
               for which, name in (("input", "prompt"), ("output", "answer"))}  # fmt: skip
    trainer = Watched("Labels", str(folder)).train(**columns, epochs=1, batch_size=rows, learning_rate=1e-3)
    assert 0 < trainer.largest < rows * len(tokenizer(text)["input_ids"]) * words / 2


class Plain(SoftTargets):
    """Soft targets by the logits."""

    takes_factors = False
