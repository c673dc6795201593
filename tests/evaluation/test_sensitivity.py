"""The sensitivity of a model's layers: the KL divergence of its output, written out in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny_models import bert, fit, llama, save, word_pieces
from transformers import AutoModel

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.evaluation import sensitivity
from datadreamer_like.formats.modules import block_linears
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.quantization import AbsMax, Mixed

TEXTS = ["the cat sat", "the dog sat on the mat", "a mat", "the the cat"]


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    tokenizer = word_pieces(TEXTS)
    model = bert(tokenizer, num_labels=3)
    fit(model, 10, **tokenizer(TEXTS, padding=True, return_tensors="pt"), labels=torch.tensor([0, 1, 2, 0]))
    return TrainedModel(save(model, tokenizer, tmp_path_factory.mktemp("student")))


@pytest.mark.parametrize("batch_size", [32, 3])
def test_it_is_the_divergence_of_the_model_with_one_layer_rounded(student: TrainedModel, batch_size: int) -> None:
    before = copy.deepcopy(student.model.state_dict())
    found = sensitivity(student, TEXTS, bits=(3, 8), batch_size=batch_size)
    assert all(torch.equal(value, before[name]) for name, value in student.model.state_dict().items())
    names = list(block_linears(student.model))
    assert list(found.divergences) == names
    batch = student.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = student.model(**batch).logits
        for name in (names[0], names[-1]):
            others = tuple(other for other in names if other != name)
            small = AbsMax(3, "row", exclude=others).apply(student.model)
            wanted = divergence(expected, small(**batch).logits)
            assert found.divergences[name][3] == pytest.approx(wanted, rel=1e-3, abs=1e-9)
    assert found.bits == [8, 3]
    assert sum(each[3] for each in found.divergences.values()) > sum(each[8] for each in found.divergences.values())


def test_a_table_a_plot_and_patterns_for_mixed_come_out_of_it(student: TrainedModel) -> None:
    found = sensitivity(student, TEXTS, bits=(4, 2), by="block", group_size=16)
    blocks = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert list(found.divergences) == blocks
    worst, best = found.most_sensitive(2, 2)
    assert found.divergences[worst][2] > found.divergences[best][2]
    lines = str(found).splitlines()
    assert [name in lines[2 + number] or name in lines[3 + number] for number, name in enumerate(blocks)]
    assert "4 bits" in lines[0]
    figure = found.plot()
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["4 bits", "2 bits"]
    assert list(figure.axes[0].get_lines()[1].get_ydata()) == [found.divergences[name][2] for name in blocks]
    mixed = Mixed({worst: AbsMax(8), "*": AbsMax(2, 16)}).apply(student.model)
    assert mixed.get_submodule(f"{worst}.output.dense").bits == 8
    with pytest.raises(DefinitionError, match="5 bits were not measured; 4, 2 were"):
        found.most_sensitive(5, 1)


def test_tokens_of_a_language_model_count_without_padding(tmp_path: Path) -> None:
    tokenizer = word_pieces(TEXTS)
    student = TrainedModel(save(llama(tokenizer), tokenizer, tmp_path))
    found = sensitivity(student, TEXTS, bits=(2,), by="block")
    alone = [sensitivity(student, [text], bits=(2,), by="block").divergences for text in TEXTS]
    sizes = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    for name, each in found.divergences.items():
        wanted = sum(one[name][2] * size for one, size in zip(alone, sizes, strict=True)) / sum(sizes)
        assert each[2] == pytest.approx(wanted, rel=1e-3)


def test_logits_that_are_not_finite_are_never_a_divergence_of_zero(tmp_path: Path) -> None:
    tokenizer = word_pieces(TEXTS)
    overflowing = llama(tokenizer)
    mlp = overflowing.model.layers[0].mlp
    with torch.no_grad():
        mlp.up_proj.weight.mul_(3e4)
        mlp.gate_proj.weight.mul_(1e3)
    broken = TrainedModel(save(overflowing.half(), tokenizer, tmp_path / "half"))  # its weights are finite
    with pytest.raises(DataError, match="logits of LlamaForCausalLM are NaN or infinite before anything is rounded"):
        sensitivity(broken, TEXTS, bits=(4,))

    student = TrainedModel(save(llama(tokenizer), tokenizer, tmp_path / "student"))
    before = sensitivity(student, TEXTS, bits=(2,), by="block").divergences
    first, second = before

    def banned(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:  # a class that is impossible in both
        return torch.cat([logits, torch.full_like(logits[..., :1], float("-inf"))], -1)

    def overflows(module: torch.nn.Module, _: object, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if type(module.down_proj) is torch.nn.Linear else hidden * float("inf")

    with student.model.lm_head.register_forward_hook(banned):
        assert sensitivity(student, TEXTS, bits=(2,), by="block").divergences == {
            name: {2: pytest.approx(found[2])} for name, found in before.items()
        }
    with student.model.model.layers[0].mlp.register_forward_hook(overflows):
        measured = sensitivity(student, TEXTS, bits=(2,), by="block")
    assert "inf" in str(measured)
    assert measured.most_sensitive(2, 1) == [first]
    assert measured.plot() is not None
    found = measured.divergences
    assert found[first][2] == float("inf")
    assert found[second][2] == pytest.approx(before[second][2])


def test_what_cannot_be_measured_is_refused(student: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="texts is one text"):
        sensitivity(student, "a mat")
    with pytest.raises(ArgumentTypeError, match="texts must be a list of texts, not None"):
        sensitivity(student, None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="texts has None, which is not a text"):
        sensitivity(student, ["a mat", None])  # type: ignore[list-item]
    with pytest.raises(EmptyDataset, match="texts is empty"):
        sensitivity(student, [])
    with pytest.raises(DefinitionError, match="bits is 9"):
        sensitivity(student, TEXTS, bits=(9,))
    with pytest.raises(DefinitionError, match="by='head'"):
        sensitivity(student, TEXTS, by="head")  # type: ignore[arg-type]
    save(AbsMax().apply(student.model), student.tokenizer, tmp_path / "small")
    with pytest.raises(MethodMisfit, match="quantized already"):
        sensitivity(str(tmp_path / "small"), TEXTS)
    save(AutoModel.from_pretrained(student.path), student.tokenizer, tmp_path / "encoder")
    with pytest.raises(MethodMisfit, match="has no logits"):
        sensitivity(str(tmp_path / "encoder"), TEXTS, bits=(8,))
