"""The losses against numpy in float64, and the promises of methods.md."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datadreamer_like.distillation import divergence, hard_target_loss, soft_target_loss, supervised_loss
from datadreamer_like.errors import DefinitionError

SHAPES = [(3,), (7, 5), (2, 3, 11), (2, 1, 3, 129)]
KINDS = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def logits(shape, seed, dtype=torch.float64):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3).to(dtype)


def softmax(z):
    exponentials = np.exp(z - z.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def kl(a, b):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 0, a * (np.log(a) - np.log(b)), 0.0).sum(-1)


def in_numpy(student, teacher, kind, temperature=1.0, beta=0.5, skew=0.1):
    p = softmax(student.double().numpy() / temperature)
    q = softmax(teacher.double().numpy() / temperature)
    m = beta * q + (1 - beta) * p
    found = {
        "forward_kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "jsd": lambda: beta * kl(q, m) + (1 - beta) * kl(p, m),
        "skew_kl": lambda: kl(q, skew * q + (1 - skew) * p),
        "skew_reverse_kl": lambda: kl(p, (1 - skew) * q + skew * p),
    }[kind]()
    return float(np.mean(found) * temperature**2)


def cross_entropy(student, labels):
    p = softmax(student.double().numpy()).reshape(-1, student.shape[-1])
    return float(-np.log(p[np.arange(len(p)), labels.numpy().reshape(-1)]).mean())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_divergences_are_their_formulas(shape, kind, dtype):
    student, teacher = logits(shape, 0, dtype), logits(shape, 1, dtype)
    for options in ({}, {"temperature": 2.5}, {"beta": 0.1, "skew": 0.7}):
        found = divergence(student, teacher, kind=kind, **options)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert found.item() == pytest.approx(
            in_numpy(student, teacher, kind, **options), rel=TOLERANCE[dtype], abs=1e-6
        )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
def test_soft_targets_are_their_formula(shape, dtype):
    student, teacher = logits(shape, 0, dtype), logits(shape, 1, dtype)
    labels = torch.randint(0, shape[-1], shape[:-1], generator=torch.Generator().manual_seed(2))
    for temperature, alpha in [(2.0, 0.5), (1.0, 0.9), (7.0, 0.0), (3.0, 1.0)]:
        soft = in_numpy(student, teacher, "forward_kl", temperature)
        wanted = alpha * soft + (1 - alpha) * cross_entropy(student, labels)
        found = soft_target_loss(student, teacher, labels, temperature=temperature, alpha=alpha)
        assert found.item() == pytest.approx(wanted, rel=TOLERANCE[dtype], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    student, teacher = logits((3, 4), 0).requires_grad_(), logits((3, 4), 1)
    torch.autograd.gradcheck(lambda s: divergence(s, teacher, kind=kind, temperature=1.7), (student,))


def test_the_gradient_keeps_its_size_as_the_temperature_rises():
    teacher = logits((64, 10), 1)

    def size(temperature, times):
        student = logits((64, 10), 0).requires_grad_()
        (divergence(student, teacher, temperature=temperature) * times).backward()
        return float(student.grad.norm())

    assert size(20.0, 1.0) == pytest.approx(size(10.0, 1.0), rel=0.1)
    # Without T² it would fall with its square.
    assert size(20.0, 1 / 20.0**2) < size(10.0, 1 / 10.0**2) / 3


def test_at_high_temperature_it_is_half_the_mean_squared_difference_of_centred_logits():
    student, teacher = logits((6, 9), 0), logits((6, 9), 1)
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    wanted = 0.5 * difference.square().mean()
    assert float(divergence(student, teacher, temperature=1e4)) == pytest.approx(wanted.item(), rel=1e-3)


def test_without_alpha_it_is_supervised_learning():
    student, labels = logits((8, 5), 0, torch.float32).requires_grad_(), torch.arange(8) % 5
    soft_target_loss(student, logits((8, 5), 1), labels, alpha=0.0).backward()
    plain = student.detach().clone().requires_grad_()
    F.cross_entropy(plain, labels).backward()
    torch.testing.assert_close(student.grad, plain.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_student_equal_to_teacher_has_no_loss_and_no_gradient(kind):
    student = logits((5, 40), 0, torch.float32).requires_grad_()
    loss = divergence(student, student.detach() + 3.0, kind=kind, temperature=2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert float(student.grad.abs().max()) < 1e-6


def test_jsd_is_symmetric_at_one_half_and_at_most_log_two():
    student, teacher = logits((50, 6), 0) * 20, logits((50, 6), 1) * 20
    one, other = divergence(student, teacher, kind="jsd"), divergence(teacher, student, kind="jsd")
    assert float(one) == pytest.approx(float(other), rel=1e-12)
    assert 0 < float(one) <= math.log(2)


def test_jsd_divided_by_its_share_tends_to_the_kls():
    student, teacher = logits((20, 6), 0), logits((20, 6), 1)
    near_zero = divergence(student, teacher, kind="jsd", beta=1e-6) / 1e-6
    near_one = divergence(student, teacher, kind="jsd", beta=1 - 1e-6) / 1e-6
    assert float(near_zero) == pytest.approx(float(divergence(student, teacher)), rel=1e-2)
    assert float(near_one) == pytest.approx(float(divergence(student, teacher, kind="reverse_kl")), rel=1e-2)


def test_skew_zero_is_the_plain_kl():
    student, teacher = logits((20, 6), 0), logits((20, 6), 1)
    assert divergence(student, teacher, kind="skew_kl", skew=0) == divergence(student, teacher)
    reverse = divergence(student, teacher, kind="reverse_kl")
    assert divergence(student, teacher, kind="skew_reverse_kl", skew=0) == reverse


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_vocabulary_has_no_probability_for_the_other_tokens(kind):
    student, teacher = logits((4, 6), 0).requires_grad_(), logits((4, 9), 1)
    padded = F.pad(student.detach(), (0, 3), value=-math.inf)
    wanted = in_numpy(padded, teacher, kind)
    found = divergence(student, teacher, kind=kind)
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    assert math.isinf(wanted) == (kind == "forward_kl")
    found.backward()
    assert student.grad.isfinite().all()
    # A logit of 0 would be another loss.
    assert found.item() != pytest.approx(in_numpy(F.pad(student.detach(), (0, 3)), teacher, kind))


@pytest.mark.parametrize("kind", ["forward_kl", "jsd", "skew_kl", "skew_reverse_kl"])
def test_a_teacher_that_excludes_tokens_gives_finite_losses_and_gradients(kind):
    student, teacher = logits((4, 6), 0).requires_grad_(), logits((4, 6), 1)
    teacher[:, 4:] = -math.inf
    found = divergence(student, teacher, kind=kind)
    found.backward()
    assert found.item() == pytest.approx(in_numpy(student.detach(), teacher, kind), rel=1e-12)
    assert student.grad.isfinite().all()
    assert divergence(student, teacher[:, :4], kind=kind).item() == pytest.approx(found.item())
    both = student.detach().clone()
    both[:, 4:] = -math.inf
    both.requires_grad_()
    divergence(both, teacher, kind=kind).backward()
    assert not both.grad.isnan().any()


@pytest.mark.parametrize("loss", [*KINDS, "soft", "hard", "supervised"])
def test_the_mean_is_over_the_positions_kept_and_others_carry_nothing(loss):
    student, teacher = logits((2, 5, 7), 0), logits((2, 5, 7), 1)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    labels = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(3))

    def compute(s, t, y, m):
        if loss == "soft":
            return soft_target_loss(s, t, y, mask=m)
        if loss == "hard":
            return hard_target_loss(s, t, mask=m)
        if loss == "supervised":
            return supervised_loss(s, y, mask=m)
        return divergence(s, t, kind=loss, mask=m)

    wanted = compute(student[mask], teacher[mask], labels[mask], None)
    student[~mask], teacher[~mask] = math.nan, math.inf
    student.requires_grad_()
    found = compute(student, teacher, labels, mask)
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert student.grad[mask].any(-1).all()
    assert not student.grad[~mask].any()
    student.grad = None
    nothing = compute(student, teacher, labels, torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0
    assert not student.grad.any()


def test_positions_without_a_label_are_left_out_of_both_terms():
    student, teacher, labels = logits((6, 4), 0), logits((6, 4), 1), torch.tensor([0, -100, 2, 3, -100, 1])
    kept = labels != -100
    found = soft_target_loss(student, teacher, labels)
    assert found.item() == pytest.approx(float(soft_target_loss(student[kept], teacher[kept], labels[kept])))
    hard = hard_target_loss(student, teacher, labels)
    assert float(hard) == pytest.approx(cross_entropy(student[kept], teacher[kept].argmax(-1)))


def test_hard_targets_never_ask_for_a_token_that_the_student_lacks():
    student, teacher = logits((5, 4), 0), logits((5, 6), 1)
    teacher[:, 5] = 100.0
    assert float(hard_target_loss(student, teacher)) == pytest.approx(cross_entropy(student, teacher[:, :4].argmax(-1)))


def test_rows_of_several_classes_are_a_question_a_class():
    student, teacher = logits((6, 4), 0), logits((6, 4), 1)
    labels = (torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    plain = F.binary_cross_entropy_with_logits(student, labels)
    assert float(supervised_loss(student, labels)) == pytest.approx(float(plain))
    chosen = F.binary_cross_entropy_with_logits(student, (teacher > 0).double())
    assert float(hard_target_loss(student, teacher, labels)) == pytest.approx(float(chosen))
    p, q = torch.sigmoid(student / 2).numpy(), torch.sigmoid(teacher / 2).numpy()
    soft = (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean() * 4
    found = soft_target_loss(student, teacher, labels, temperature=2.0, alpha=0.3)
    assert found.item() == pytest.approx(0.3 * soft + 0.7 * float(plain))
    mask = torch.tensor([True, False, True, True, False, True])
    kept = soft_target_loss(student[mask], teacher[mask], labels[mask])
    assert float(soft_target_loss(student, teacher, labels, mask=mask)) == pytest.approx(float(kept))


def test_low_precision_and_huge_logits_stay_finite():
    student = (logits((4, 50), 0) * 1000).to(torch.bfloat16).requires_grad_()
    teacher = (logits((4, 50), 1) * 1000).to(torch.bfloat16)
    for kind in KINDS:
        student.grad = None
        loss = divergence(student, teacher, kind=kind)
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()
        assert student.grad.dtype == torch.bfloat16


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits((4, 5), 0).requires_grad_(), logits((4, 5), 1).requires_grad_()
    soft_target_loss(student, teacher, torch.zeros(4, dtype=torch.long)).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"kind": "forward"}, 'Did you mean "forward_kl"'),
        ({"kind": "jsd", "beta": 0.0}, "forward_kl"),
        ({"kind": "jsd", "beta": 1.0}, "reverse_kl"),
        ({"kind": "skew_kl", "skew": 1.0}, "skew"),
        ({"mask": torch.ones(3)}, "mask"),
    ],
)
def test_options_out_of_range_are_refused(options, word):
    with pytest.raises(DefinitionError, match=word):
        divergence(logits((4, 5), 0), logits((4, 5), 1), **options)


def test_soft_targets_refuse_what_cannot_be():
    student, teacher = logits((4, 5), 0), logits((4, 5), 1)
    for alpha in (-0.1, 1.1):
        with pytest.raises(DefinitionError, match="alpha"):
            soft_target_loss(student, teacher, torch.zeros(4).long(), alpha=alpha)
    with pytest.raises(DefinitionError, match="labels"):
        soft_target_loss(student, teacher, None, alpha=0.5)
    for label in (5, -1):
        with pytest.raises(DefinitionError, match=f"The label {label} is none of the 5 classes"):
            soft_target_loss(student, teacher, torch.tensor([0, -100, label, 1]), alpha=0.5)
    with pytest.raises(DefinitionError, match="teacher"):
        soft_target_loss(student, teacher[:3], torch.zeros(4).long())
    assert float(soft_target_loss(student, teacher, None, alpha=1.0)) == float(
        divergence(student, teacher, temperature=2.0)
    )
