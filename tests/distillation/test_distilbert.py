"""DistilBERT: the triple loss against its formula, and a student that starts from the teacher's layers."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM, BertModel, DistilBertForMaskedLM

from datadreamer_like.distillation import DistilBERT, Outputs, TeacherModel, distilbert_student
from datadreamer_like.errors import DefinitionError, MethodMisfit

TOKENIZER = tiny_models.word_pieces(["the cat sat on the mat", "a dog ran to the tree"])


def teacher(layers: int, kind: type = BertForMaskedLM) -> TeacherModel:
    model = tiny_models.bert(TOKENIZER, kind, num_hidden_layers=layers)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return TeacherModel(model.eval(), TOKENIZER)


def test_the_triple_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    labels = torch.tensor([[-100, 4, -100, -100, 2], [-100, 1, -100, -100, -100]])
    student = Outputs(
        logits=draw(2, 5, 7).requires_grad_(), hidden_states=tuple(draw(2, 5, 8) for _ in range(3)), mask=mask
    )
    other = Outputs(logits=draw(2, 5, 7), hidden_states=tuple(draw(2, 5, 8) for _ in range(5)), mask=mask)
    objective = DistilBERT(teacher(2), temperature=3.0, weights=(5.0, 2.0, 1.0))
    loss = objective.loss(student, other, {"labels": labels, "mask": mask})
    soft = F.kl_div(
        (student.logits / 3).log_softmax(-1)[mask], (other.logits / 3).softmax(-1)[mask], reduction="batchmean"
    )
    masked = F.cross_entropy(student.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    cosine = (1 - F.cosine_similarity(student.hidden_states[-1], other.hidden_states[-1], dim=-1))[mask].mean()
    wanted = 5 * 9 * soft + 2 * masked + cosine
    assert torch.allclose(loss, wanted, rtol=1e-5)
    got, expected = (torch.autograd.grad(each, student.logits)[0] for each in (loss, wanted))
    assert torch.allclose(got, expected, atol=1e-6)


def test_a_student_with_all_layers_is_the_teacher(tmp_path):
    taught = teacher(3)
    folder = distilbert_student(taught, tmp_path / "all", layers=3)
    student = DistilBertForMaskedLM.from_pretrained(folder).eval()
    batch = TOKENIZER(["the cat sat on the mat", "a dog"], padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        found, wanted = student(**inputs).logits, taught.model(**inputs).logits
    assert torch.allclose(found[real], wanted[real], atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "layers", "chosen"), [(12, None, [0, 2, 4, 7, 9, 11]), (4, [0, 3], [0, 3]), (5, 1, [0])]
)
def test_layers_alternate_and_come_from_the_teacher(tmp_path, depth, layers, chosen):
    taught = teacher(depth, BertModel)
    folder = distilbert_student(taught, tmp_path / "some", layers)
    student = DistilBertForMaskedLM.from_pretrained(folder)
    assert student.config.n_layers == len(chosen)
    for index, layer in enumerate(chosen):
        ours, theirs = student.distilbert.transformer.layer[index], taught.model.encoder.layer[layer]
        assert torch.equal(ours.attention.k_lin.weight, theirs.attention.self.key.weight)
        assert torch.equal(ours.ffn.lin2.bias, theirs.output.dense.bias)
    # A head that the teacher lacks is the same each time, so that trainers find their results again.
    again = DistilBertForMaskedLM.from_pretrained(distilbert_student(taught, tmp_path / "again", layers))
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


def test_other_teachers_and_layers_are_refused(tmp_path):
    with pytest.raises(MethodMisfit, match=r"starts from a BERT encoder.*pruning\.Layers"):
        distilbert_student(TeacherModel(tiny_models.build("roberta"), TOKENIZER), tmp_path / "a")
    for layers, message in ((0, "from 1 to 2"), ([1, 0], "in order"), ([0, 2], "from 0 to 1"), ([], "in order")):
        with pytest.raises(DefinitionError, match=message):
            distilbert_student(teacher(2), tmp_path / "a", layers)
    with pytest.raises(DefinitionError, match="weights are"):
        DistilBERT(teacher(2), weights=(1.0, 2.0))
    assert not (tmp_path / "a").exists()
