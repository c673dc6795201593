"""Objectives for language models against their formulas, written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.distillation import (
    ULD,
    Combined,
    OnPolicy,
    Outputs,
    SequenceInterpolation,
    SequenceLevel,
    SoftTargets,
    Supervised,
    TeacherModel,
    WordLevel,
    sentence_bleu,
    universal_logit_loss,
)
from datadreamer_like.errors import DefinitionError

TEACHER = TeacherModel(torch.nn.Identity(), str)
KINDS = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(size: tuple[int, int] = (3, 5), classes: int = 7) -> dict[str, Tensor]:
    """Prompts and padding are labelled -100."""
    labels = torch.randint(classes, size, generator=torch.Generator().manual_seed(9))
    labels[0, :2] = labels[2, 3:] = -100
    return {"labels": labels, "mask": labels != -100}


def plain(kind: str, student: Tensor, teacher: Tensor, temperature: float, beta: float, skew: float) -> Tensor:
    """The divergence of one position by its definition, as a sum over classes."""
    p, q = F.softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum()

    mixture = beta * q + (1 - beta) * p
    formulas = {
        "forward_kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "jsd": lambda: beta * kl(q, mixture) + (1 - beta) * kl(p, mixture),
        "skew_kl": lambda: kl(q, skew * q + (1 - skew) * p),
        "skew_reverse_kl": lambda: kl(p, (1 - skew) * q + skew * p),
    }
    return temperature**2 * formulas[kind]()


def by_hand(options: Any, student: Tensor, teacher: Tensor, batch: dict[str, Tensor], alpha: float) -> Tensor:
    terms = []
    for row, position in batch["mask"].nonzero().tolist():
        z, t = student[row, position], teacher[row, position]
        label = int(batch["labels"][row, position])
        likelihood = -z.log_softmax(-1)[label] if label >= 0 else z.sum() * 0
        apart = plain(options.kind, z, t, options.temperature, options.beta, options.skew)
        terms.append((1 - alpha) * likelihood + alpha * apart)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_word_level_is_its_formula_on_the_answers_alone_and_so_is_its_gradient(kind):
    objective = WordLevel(TEACHER, temperature=1.7, alpha=0.3, kind=kind, beta=0.2, skew=0.15)
    batch, teacher = batch_of(), logits(3, 5, 7, seed=1)
    mine, other = (logits(3, 5, 7).requires_grad_() for _ in range(2))
    loss = objective.loss(Outputs(logits=mine), Outputs(logits=teacher), batch)
    wanted = by_hand(objective, other, teacher, batch, 0.3)
    assert torch.allclose(loss, wanted, rtol=1e-12)
    (got,), (expected,) = torch.autograd.grad(loss, mine), torch.autograd.grad(wanted, other)
    assert torch.allclose(got, expected, atol=1e-14)
    assert not got[~batch["mask"]].any()


def test_word_level_with_forward_kl_is_soft_targets_and_its_ends_are_each_of_its_terms():
    batch, mine, theirs = batch_of(), Outputs(logits=logits(3, 5, 7)), Outputs(logits=logits(3, 5, 7, seed=1))

    def loss(objective: Any) -> Tensor:
        found: Tensor = objective.loss(mine, theirs, batch)
        return found

    assert loss(WordLevel(TEACHER, 2.0, 0.4)) == pytest.approx(float(loss(SoftTargets(TEACHER, 2.0, 0.4))), rel=1e-12)
    assert loss(WordLevel(TEACHER, alpha=0.0)) == pytest.approx(float(loss(Supervised())), rel=1e-12)
    assert not WordLevel(TEACHER, alpha=1.0).needs_labels
    same = WordLevel(TEACHER, alpha=1.0, kind="reverse_kl").loss(mine, mine, batch)
    assert float(same) == pytest.approx(0.0, abs=1e-12)


def test_word_level_with_a_sure_teacher_is_the_likelihood_of_its_tokens():
    batch, mine = batch_of(), logits(3, 5, 7)
    sure = 1e4 * F.one_hot(batch["labels"].clamp(min=0), 7).double()
    loss = WordLevel(TEACHER, alpha=1.0).loss(Outputs(logits=mine), Outputs(logits=sure), batch)
    assert loss.item() == pytest.approx(float(F.cross_entropy(mine[batch["mask"]], batch["labels"][batch["mask"]])))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_a_smaller_teacher_lacks_have_no_probability_and_the_loss_is_finite(kind):
    batch, mine, theirs = batch_of(), logits(3, 5, 9), logits(3, 5, 7, seed=1)
    objective = WordLevel(TEACHER, alpha=1.0, kind=kind)
    loss = objective.loss(Outputs(logits=mine), Outputs(logits=theirs), batch)
    assert torch.isfinite(loss)
    # Almost no probability in the limit of a very low logit; a logit of 0 would be a real one.
    padded = F.pad(theirs, (0, 2), value=-200.0)
    ours = mine[..., :7] if kind == "reverse_kl" else mine
    wanted = by_hand(objective, ours, padded[..., : ours.shape[-1]], batch, 1.0)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-9)
    zero = by_hand(objective, mine, F.pad(theirs, (0, 2)), batch, 1.0)
    assert loss.item() != pytest.approx(zero.item(), rel=1e-2)


def test_sequence_level_weighs_the_teachers_answers_against_the_references():
    batch = {**batch_of((4, 5)), "written": torch.tensor([False, False, True, True])}
    mine = logits(4, 5, 7)

    def likelihood(rows: slice) -> float:
        kept = batch["mask"][rows]
        return float(F.cross_entropy(mine[rows][kept], batch["labels"][rows][kept]))

    loss = SequenceLevel(TEACHER, alpha=0.7).loss(Outputs(logits=mine), None, batch)
    assert loss.item() == pytest.approx(0.7 * likelihood(slice(2, 4)) + 0.3 * likelihood(slice(0, 2)), rel=1e-12)
    for alpha in (0.0, 1.0):  # one answer to a prompt
        alone = SequenceLevel(TEACHER, alpha=alpha).loss(Outputs(logits=mine), None, batch_of((4, 5)))
        assert float(alone) == pytest.approx(likelihood(slice(None)), rel=1e-12)
    assert SequenceLevel(TEACHER, alpha=0.0).beams is None
    assert not SequenceLevel(TEACHER).needs_labels
    with pytest.raises(DefinitionError, match="must have both answers"):
        SequenceLevel(TEACHER, alpha=0.5).loss(Outputs(logits=mine), None, batch_of((4, 5)))


def test_interpolation_takes_the_beam_that_is_closest_to_the_reference():
    beams = ["a dog ran home", "the cat sat there on the mat", "the cat sat on the warm mat", "the cat"]
    chosen = SequenceInterpolation(TEACHER, beam_size=4)
    assert chosen.target("the cat sat on the mat", beams) == beams[2]
    assert chosen.target("nothing alike", beams) == beams[0]  # of equals the likeliest
    assert chosen.beams.candidates == 4


def test_sentence_bleu_is_its_formula():
    # 6 words against 7. Matches of 1- to 4-grams: 6 of 6, 4 of 5, 2 of 4, 0 of 3; 1 is added above n = 1.
    found = sentence_bleu("the cat sat on a mat", "the cat sat now on a mat")
    matches = [(6, 6), (4 + 1, 5 + 1), (2 + 1, 4 + 1), (0 + 1, 3 + 1)]
    wanted = math.exp(1 - 7 / 6) * math.prod(m / t for m, t in matches) ** 0.25
    assert found == pytest.approx(wanted)
    assert sentence_bleu("", "a") == 0.0
    assert sentence_bleu("a b", "a b") == pytest.approx(1.0)
    assert sentence_bleu("a a a a", "a") < sentence_bleu("a", "a")


def test_on_policy_is_the_divergence_where_the_mask_is_true_and_labels_carry_no_loss():
    batch = batch_of()
    objective = OnPolicy(TEACHER, kind="jsd", beta=0.1, temperature=1.3)
    mine, theirs = logits(3, 5, 7), logits(3, 5, 7, seed=1)
    loss = objective.loss(Outputs(logits=mine), Outputs(logits=theirs), batch)
    assert loss.item() == pytest.approx(float(by_hand(objective, mine, theirs, batch, 1.0)), rel=1e-12)
    sampled = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    assert objective.loss(Outputs(logits=mine), Outputs(logits=theirs), sampled) == loss
    both = Combined([objective, Supervised()], [1.0, 1.0])
    assert both.loss(Outputs(logits=mine), Outputs(logits=theirs), sampled) == loss
    assert both.completions == objective.completions


def test_universal_logits_are_compared_by_rank_up_to_the_shorter_answer():
    mine, theirs = logits(2, 4, 5).requires_grad_(), logits(2, 6, 8, seed=1)
    ours = torch.tensor([[False, True, True, True], [False, False, True, True]])
    others = torch.tensor([[False, False, False, False, True, True], [True, True, True, True, True, False]])
    loss = universal_logit_loss(mine, theirs, ours, others, temperature=1.5)
    terms = []
    for row, pairs in enumerate([[(1, 4), (2, 5)], [(2, 0), (3, 1)]]):
        for i, j in pairs:
            p = sorted((mine[row, i] / 1.5).softmax(-1), reverse=True) + [torch.zeros(())] * 3
            q = sorted((theirs[row, j] / 1.5).softmax(-1), reverse=True)
            terms.append(sum(abs(a - b) for a, b in zip(p, q, strict=True)))
    wanted = torch.stack(terms).mean()
    assert torch.allclose(loss, wanted, rtol=1e-12)
    got, expected = (torch.autograd.grad(each, mine, retain_graph=True)[0] for each in (loss, wanted))
    assert torch.allclose(got, expected, atol=1e-14)
    assert not got[0, [0, 3]].any()
    mine, loss = mine.detach(), loss.detach()
    # The order of the tokens makes no difference, and neither does more vocabulary of no probability.
    shuffled = theirs[..., torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    wide = F.pad(shuffled, (0, 4), value=-math.inf)
    assert torch.allclose(universal_logit_loss(mine, wide, ours, others, temperature=1.5), loss)
    assert float(universal_logit_loss(mine, mine)) == 0.0
    assert float(universal_logit_loss(mine, theirs, ours & False, others)) == 0.0
    batch = {"labels": torch.where(ours, 1, -100), "mask": ours}
    whole = ULD(TEACHER, weight=1.5, temperature=1.5)
    found = whole.loss(Outputs(logits=mine), Outputs(logits=theirs, positions=others), batch)
    assert found.item() == pytest.approx(float(F.cross_entropy(mine[ours], batch["labels"][ours]) + 1.5 * loss))
    with pytest.raises(DefinitionError, match="the same rows for student and teacher"):
        universal_logit_loss(mine, theirs[:1], ours, others[:1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WordLevel(TEACHER, alpha=1.5), "alpha is 1.5"),
        (lambda: WordLevel(TEACHER, temperature=0.0), "temperature is 0.0"),
        (lambda: WordLevel(TEACHER, kind="backward_kl"), 'no divergence "backward_kl"'),
        (lambda: WordLevel(TEACHER, kind="jsd", beta=1.0), "beta is 1.0"),
        (lambda: SequenceLevel(TEACHER, beam_size=0), "beam_size is 0"),
        (lambda: SequenceLevel(TEACHER, alpha=-0.1), "alpha is -0.1"),
        (lambda: SequenceInterpolation(TEACHER, max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: OnPolicy(TEACHER, fraction=2), "fraction is 2"),
        (lambda: OnPolicy(TEACHER, temperature=-1.0), "temperature is -1.0"),
        (lambda: ULD(TEACHER, weight=0.0), "weight is 0.0"),
        (lambda: Combined([ULD(TEACHER), WordLevel(TEACHER)], [1.0, 1.0]), "token by token"),
        (lambda: Combined([SequenceLevel(TEACHER), SequenceInterpolation(TEACHER)], [1, 1]), r"\(beams\)"),
        (lambda: Combined([SequenceLevel(TEACHER, alpha=0.5), ULD(TEACHER)], [1, 1]), "alpha=1.0"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(DefinitionError, match=message):
        make()
