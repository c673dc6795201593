"""What is pruned is saved, loaded in a fresh process, and trained on like any other model."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import batches, build, logits
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from warm import printed_by

import datadreamer_like.pruning as pruning

from .conftest import PRUNABLE

LOADER = """
import sys, warnings, torch, transformers, json
from pathlib import Path
warnings.simplefilter("error")
transformers.logging.disable_progress_bar()
import {room}
for folder in map(Path, sys.argv[1:]):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    auto = "AutoModelForSequenceClassification" if "Sequence" in architecture else "AutoModelForCausalLM"
    batch = torch.load(folder / "batch.pt")
    found = {{}}
    for attention in ("sdpa", "eager"):
        model, info = getattr(transformers, auto).from_pretrained(
            folder, attn_implementation=attention, output_loading_info=True
        )
        assert not any(info.values()), info
        with torch.no_grad():
            found[attention] = model(**batch).logits
    bare = transformers.AutoModel.from_pretrained(folder)
    bare.save_pretrained(folder / "bare")
    bare_again = transformers.AutoModel.from_pretrained(folder / "bare")
    for (name, one), (_, other) in zip(bare.named_parameters(), bare_again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    torch.save(found, folder / "logits.pt")
"""


def combined(family: str) -> nn.Module:
    """Heads pruned, one layer dropped, then weights: some layer has no head left."""
    model = build(family)
    data = batches(model)
    narrow = pruning.Heads(sparsity=0.6, step=1.0).apply(model, data)
    fewer = pruning.Layers(keep=[0, 2]).apply(narrow)
    return pruning.Magnitude(sparsity=0.8).apply(pruning.Heads(sparsity=0.3).apply(fewer, data))


def test_every_family_loads_with_equal_logits_in_a_fresh_process(tmp_path: Path) -> None:
    expected = {}
    for family in PRUNABLE:
        model = combined(family)
        batch = {name: value for name, value in batches(model)[0].items() if name != "labels"}
        model.save_pretrained(tmp_path / family)
        torch.save(batch, tmp_path / family / "batch.pt")
        with torch.no_grad():
            expected[family] = model.eval()(**batch).logits
    for room, families in (("datadreamer_like.formats", PRUNABLE), ("datadreamer_like.pruning", PRUNABLE[:1])):
        printed_by(LOADER.format(room=room), *(str(tmp_path / family) for family in families), plain=True)
        for family in families:
            value = expected[family]
            mask = torch.load(tmp_path / family / "batch.pt")["attention_mask"].bool()
            for found in torch.load(tmp_path / family / "logits.pt").values():
                same = found if found.dim() == 2 else found[mask]
                torch.testing.assert_close(same, value if value.dim() == 2 else value[mask], atol=1e-5, rtol=1e-5)
            (tmp_path / family / "logits.pt").unlink()


def test_sparse_weights_take_a_bit_and_their_values_on_disk(tmp_path: Path) -> None:
    model = build("bert")
    model.save_pretrained(tmp_path / "dense")
    pruning.Magnitude(0.8, scope="layer").apply(model).save_pretrained(tmp_path / "sparse")
    tensors = load_file(tmp_path / "sparse" / "model.safetensors")
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert name not in tensors
    assert tensors[name + "_bits"].shape == (32 * 48 // 8,)
    assert tensors[name + "_values"].shape == (32 * 48 - round(0.8 * 32 * 48),)
    dense, sparse = ((tmp_path / kind / "model.safetensors").stat().st_size for kind in ("dense", "sparse"))
    assert sparse < 0.6 * dense


def test_a_dense_enough_tensor_stays_dense_on_disk(tmp_path: Path) -> None:
    pruning.Magnitude(0.01).apply(build("bert")).save_pretrained(tmp_path)
    assert not any(name.endswith("_bits") for name in load_file(tmp_path / "model.safetensors"))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 3


def test_layers_alone_need_no_loader_of_ours(tmp_path: Path, family: str) -> None:
    model = pruning.Layers(keep=2).apply(build(family))
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = type(model).from_pretrained(tmp_path)
    batch = batches(model)[0]
    torch.testing.assert_close(logits(again, batch), logits(model, batch))


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self.rows = [
            {name: value[row] for name, value in batch.items()} for batch in batches(model) for row in range(4)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


class KeepZeros(transformers.TrainerCallback):
    """What a trainer does to retrain a sparse model."""

    def on_train_begin(self, *args: object, model: nn.Module, **kwargs: object) -> None:
        self.kept = pruning.masks(model)

    def on_step_end(self, *args: object, model: nn.Module, **kwargs: object) -> None:
        pruning.reapply(model, self.kept)


def options(folder: Path, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        dataloader_pin_memory=False,
    )


@pytest.mark.parametrize("family", ["bert", "llama", "distilbert"])
def test_a_pruned_model_trains_saves_checkpoints_and_resumes(tmp_path: Path, family: str) -> None:
    model = combined(family)
    zeros = {name: ~mask for name, mask in pruning.masks(model).items()}
    before = logits(model, batches(model)[0])
    trainer = Trainer(model, options(tmp_path, 2), train_dataset=Rows(model), callbacks=[KeepZeros()])
    trainer.train()
    after = logits(model, batches(model)[0])
    assert not torch.allclose(before, after, atol=1e-4)
    assert zeros
    assert all((model.get_parameter(name)[mask] == 0).all() for name, mask in zeros.items())
    checkpoint = tmp_path / "checkpoint-2"
    torch.testing.assert_close(logits(type(model).from_pretrained(checkpoint), batches(model)[0]), after)
    # Resuming reads the packed tensors of the checkpoint into a model of the same layout.
    fresh = combined(family)
    resumed = Trainer(fresh, options(tmp_path, 2), train_dataset=Rows(fresh), callbacks=[KeepZeros()])
    resumed.train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(logits(fresh, batches(model)[0]), after)


def test_a_pruned_model_can_be_cast(tmp_path: Path) -> None:
    model = combined("bert")
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    batch = batches(model)[0]
    torch.testing.assert_close(logits(again.float(), batch), logits(model, batch), atol=0.1, rtol=0.1)


def test_minilm_keeps_its_layouts_through_saving_twice(minilm_path: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=4)
    data = [{"input_ids": torch.randint(1000, 20000, (4, 16)), "labels": torch.randint(0, 4, (4,))}]
    small = pruning.Magnitude(0.8).apply(pruning.Heads(0.5, step=1.0).apply(model, data))
    small.save_pretrained(tmp_path / "once")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "once")
    again.save_pretrained(tmp_path / "twice")
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / "twice")
    inputs = {"input_ids": data[0]["input_ids"]}
    with torch.no_grad():
        torch.testing.assert_close(last(**inputs).logits, small.eval()(**inputs).logits, atol=1e-5, rtol=1e-5)
    once, twice = ((tmp_path / time / "config.json").read_text() for time in ("once", "twice"))
    assert json.loads(once)["quantization_config"] == json.loads(twice)["quantization_config"]
    assert small.num_parameters() < model.num_parameters()
