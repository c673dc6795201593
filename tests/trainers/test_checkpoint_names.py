"""Models whose files have other names than their tensors resume, and come to their best epoch, as all do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from dying import counting_steps, run
from safetensors.torch import load_file, save_file

from datadreamer_like import DataDreamer
from datadreamer_like.models import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier

from .conftest import Rows, opinions

EPOCHS, STEPS = 4, 8


@pytest.fixture
def mixture(tiny_encoder: Path, tmp_path: Path) -> Path:
    """Its files have each expert's weights by themselves, the model those of all in one tensor."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_encoder)
    config = transformers.MixtralConfig(
        **{**tiny_models.SIZES, "vocab_size": len(tokenizer)}, num_local_experts=4, num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tiny_models.save(transformers.MixtralModel(config), tokenizer, tmp_path / "mixture")
    assert any(".experts.0.w1" in name for name in load_file(folder / "model.safetensors"))
    return folder


@pytest.fixture
def old_names(tiny_encoder: Path, tmp_path: Path) -> Path:
    """Its norms have the names of TensorFlow, as the first BERTs on the Hub do."""
    model = transformers.AutoModel.from_pretrained(tiny_encoder)
    folder = tiny_models.save(model, transformers.AutoTokenizer.from_pretrained(tiny_encoder), tmp_path / "old")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path, metadata={"format": "pt"})
    return folder


def train(folder: Path, model: Path, dies_at: int) -> None:
    with counting_steps(dies_at) as steps, DataDreamer(folder, verbose=False):
        rows = Rows("Rows", opinions(64)).output
        trainer = TrainHFClassifier("It", str(model), device="cpu")
        # So fast that the best epoch is not the last.
        trainer.train(
            rows["text"], rows["label"], rows["text"], rows["label"], epochs=EPOCHS, batch_size=8, learning_rate=3e-2
        )
        torch.save({"metrics": trainer.metrics, "steps": steps()}, folder.parent / f"{folder.name}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "old_names"])
def test_a_model_whose_files_have_other_names_resumes_and_comes_to_its_best_epoch(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    run(train, tmp_path / "whole", model)
    run(train, tmp_path / "cut", model, dies_at=2 * STEPS + 3)
    run(train, tmp_path / "cut", model)
    whole, cut = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "cut"))
    assert (whole["steps"], cut["steps"]) == (EPOCHS * STEPS, 2 * STEPS)
    assert whole["metrics"] == cut["metrics"]
    first, second = (load_file(tmp_path / name / "it/model/model.safetensors") for name in ("whole", "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    given: dict[str, Any] = opinions(64)
    student = TrainedModel(tmp_path / "whole/it/model")
    logits = torch.from_numpy(student.logits(given["text"]))
    targets = torch.tensor([student.label2id[label] for label in given["label"]])
    loss = float(torch.nn.functional.cross_entropy(logits, targets))
    assert loss == pytest.approx(whole["metrics"]["loss"], abs=1e-4)
