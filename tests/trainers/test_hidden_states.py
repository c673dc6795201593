"""Training with HiddenStates: the projection is optimised, checkpointed, and gone from the saved student."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertModel
from user_scripts import Script

from datadreamer_like.distillation import Combined, HiddenStates, Supervised, TeacherModel, TinyBERT
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.evaluation.tasks.examples import ShuffledBatches
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier

from .conftest import opinions

OPTIONS: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.0, "adam_epsilon": 1e-3}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def wide_encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher without a head: the same tokens, 48 hidden units and 4 layers in place of 32 and 2."""
    config = AutoConfig.from_pretrained(tiny_encoder, hidden_size=48, num_hidden_layers=4, num_attention_heads=4)
    folder = tmp_path_factory.mktemp("wide-encoder")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    return folder


def test_steps_are_those_of_a_hand_written_loop_that_optimises_the_projection(
    session, tiny_encoder, wide_encoder, data, monkeypatch
):
    columns = data()
    start = TrainHFClassifier("Start", str(tiny_encoder), **NO_DROPOUT)
    start.train(**columns, epochs=1, batch_size=96, learning_rate=0.0)
    drawn: list[nn.Linear] = []
    make = HiddenStates.modules

    def modules(self: HiddenStates, student: Any, teacher: Any) -> Any:
        made = make(self, student, teacher)
        drawn.append(nn.Linear(32, 48, bias=False))
        drawn[0].load_state_dict(made.state_dict())
        return made

    monkeypatch.setattr(HiddenStates, "modules", modules)
    teacher = TrainedModel(wide_encoder)
    objective = Combined([Supervised(), HiddenStates(teacher)], weights=[0.5, 2.0])
    student = TrainHFClassifier("Student", start, **NO_DROPOUT)
    student.train(**columns, objective=objective, epochs=1, batch_size=32, **OPTIONS)

    rows = opinions(96)
    tokenizer = teacher.tokenizer
    lengths = np.array([len(ids) for ids in tokenizer(rows["text"])["input_ids"]])

    def by_hand(optimised: bool) -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(start.path, **NO_DROPOUT)
        projection = nn.Linear(32, 48, bias=False)
        projection.load_state_dict(drawn[0].state_dict())
        parameters = [*model.parameters(), *(projection.parameters() if optimised else ())]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, eps=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 3)
        model.train()
        for indices in ShuffledBatches(lengths, 32, seed=42):
            batch = tokenizer([rows["text"][i] for i in indices], padding=True, return_tensors="pt")
            labels = torch.tensor([int(rows["label"][i] == "positive") for i in indices])
            ours = model(**batch, output_hidden_states=True)
            with torch.no_grad():
                theirs = teacher.model(**batch, output_hidden_states=True).hidden_states
            real = batch["attention_mask"].bool()
            pairs = [(ours.hidden_states[layer], theirs[other]) for layer, other in ((1, 2), (2, 4))]
            distance = sum(F.mse_loss(projection(h[real]), t[real]) for h, t in pairs) / 2
            optimizer.zero_grad()
            (0.5 * F.cross_entropy(ours.logits, labels) + 2.0 * distance).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        return model

    trained = by_hand(optimised=True)
    for name, weight in trained.named_parameters():
        assert torch.allclose(weight, student.model.get_parameter(name), atol=5e-6), name
    frozen = by_hand(optimised=False)
    assert not torch.allclose(frozen.bert.encoder.layer[0].output.dense.weight, student.model.get_parameter(
        "bert.encoder.layer.0.output.dense.weight"), atol=1e-5)  # fmt: skip
    weights = load_file(Path(student.path) / "model.safetensors")
    assert weights.keys() == load_file(Path(start.path) / "model.safetensors").keys()
    assert sorted(path.name for path in Path(student.path).iterdir()) == sorted(
        path.name for path in Path(start.path).iterdir()
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, in this test
def test_an_adapter_is_trained_with_a_projection_too(session, tiny_encoder, wide_encoder, data):
    from peft import LoraConfig

    student = TrainHFClassifier("A", str(tiny_encoder), peft_config=LoraConfig(r=4, target_modules=["query", "value"]))
    objective = Combined(
        [Supervised(), HiddenStates(TrainedModel(wide_encoder), distance="cosine")], weights=[1.0, 1.0]
    )
    student.train(**data(), objective=objective, epochs=2, batch_size=16, learning_rate=1e-2)
    history = student.manifest.result["history"]
    assert history[1]["loss"] < history[0]["loss"]
    for file in Path(student.path).parent.rglob("*.safetensors"):
        assert not [name for name in load_file(file) if "objective" in name]


def test_other_tokens_share_no_position_and_are_refused_before_training(session, tiny_encoder, tiny_causal_lm, data):
    with pytest.raises(MethodMisfit, match="vocabularies of the teacher and the student differ"):
        TrainHFClassifier("A", str(tiny_encoder)).train(
            **data(), objective=HiddenStates(TrainedModel(tiny_causal_lm)), epochs=1
        )


def test_a_module_that_transformers_did_not_make_has_no_states_and_is_refused(session, tiny_encoder, data):
    teacher = TeacherModel(nn.Linear(2, 2), AutoTokenizer.from_pretrained(tiny_encoder))
    with pytest.raises(MethodMisfit, match=r"needs hidden states of its teacher, which TeacherModel\(Linear\) does"):
        TrainHFClassifier("A", str(tiny_encoder)).train(**data(), objective=HiddenStates(teacher), epochs=1)


def test_rows_without_labels_take_the_classes_of_a_teacher_that_is_a_classifier(session, tiny_encoder, data):
    given = {**data(), "train_output": None, "validation_output": None}
    teacher = TrainHFClassifier("Teacher", str(tiny_encoder)).train(**data(), epochs=1, batch_size=32)
    student = TrainHFClassifier("Student", str(tiny_encoder)).train(**given, objective=HiddenStates(teacher), epochs=1)
    assert student.trained.labels == teacher.trained.labels == ["negative", "positive"]
    with pytest.raises(DefinitionError, match="none of the training rows has a label, and HiddenStates needs some"):
        TrainHFClassifier("Other", str(tiny_encoder)).train(
            **given, objective=HiddenStates(TrainedModel(tiny_encoder)), epochs=1
        )


SCRIPT = """
import sys
from datadreamer_like import DataDreamer
from datadreamer_like.distillation import Combined, HiddenStates, Supervised, TinyBERT
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier
from tests.trainers.conftest import Rows, opinions

folder, encoder, teacher = sys.argv[1:]
with DataDreamer(folder, verbose=False):
    rows, other = Rows("Train rows", opinions(96)).output, Rows("Validation rows", opinions(32, seed=1)).output
    TrainHFClassifier("A", encoder).train(
        rows["text"], rows["label"], other["text"], other["label"], epochs=5, batch_size=8, learning_rate=2e-3,
        objective=Combined([Supervised(), HiddenStates(TrainedModel(teacher))], weights=[1.0, 1.0]),
    )
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_training_goes_on_with_its_projection_and_ends_in_the_same_weights(
    tiny_encoder, wide_encoder, tmp_path
):
    def script(folder: Path) -> Script:
        return Script(SCRIPT, tmp_path / "script.py", [str(folder), str(tiny_encoder), str(wide_encoder)], warm=True)

    def epochs(folder: Path) -> float:
        states = list(folder.glob(".work/*/checkpoints/checkpoint-*/trainer_state.json"))
        return max((json.loads(state.read_text() or '{"epoch": 0}')["epoch"] for state in states), default=0)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    script(whole).run()
    process = script(cut).start()
    while epochs(cut) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    newest = max(cut.glob(".work/*/checkpoints/checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    assert set(load_file(newest / "objective.safetensors")) == {"1.weight"}
    assert not (cut / "a").exists(), "the training was over before it could be killed"
    script(cut).run()
    first, second = (load_file(folder / "a/model/model.safetensors") for folder in (whole, cut))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads((folder / "a/node.json").read_text())["result"] for folder in (whole, cut)]
    assert results[0] == results[1]


def test_a_layer_that_a_live_teacher_or_the_student_lacks_is_refused_before_rows_and_weights_are_read(
    session, tiny_encoder, wide_encoder, data, monkeypatch
):
    columns = data()
    for kind in (AutoModelForSequenceClassification, BertModel):
        monkeypatch.setattr(kind, "from_pretrained", None)
    monkeypatch.setattr(TrainHFClassifier, "_read", None)
    teacher = TrainedModel(wide_encoder)
    for number, layers in enumerate(({2: 5}, {3: 4})):
        for wrapped in (HiddenStates(teacher, layers=layers), TinyBERT(teacher, layers=layers)):
            objective = Combined([Supervised(), wrapped], weights=[1.0, 1.0])
            trainer = TrainHFClassifier(f"{type(wrapped).__name__} {number}", str(tiny_encoder))
            with pytest.raises(MethodMisfit, match="but the student has 2 layers and the teacher 4"):
                trainer.train(**columns, objective=objective, **OPTIONS)
