"""Losses from stored signals against their formulas in float64, and what they promise of the full divergence."""

import math

import numpy as np
import pytest
import torch

from datadreamer_like.distillation import Sampled, SparseTargets, TopK, divergence, sparse_divergence
from datadreamer_like.distillation.signals import Signals
from datadreamer_like.distillation.sparse_losses import sparse_and_label_loss
from datadreamer_like.errors import DefinitionError

KINDS = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]


def logits(shape, seed, scale=3.0, dtype=torch.float64):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def targets_of(signals: Signals, teacher: torch.Tensor, key: bytes = bytes(16)) -> SparseTargets:
    """The teacher's signals for one row [positions, vocabulary], through their stored form."""
    mask = torch.ones(1, len(teacher), dtype=torch.bool)
    (columns,) = signals.capture(teacher[None], mask, [key])
    (found,) = signals.restore(columns, mask).values()
    return SparseTargets(found.ids[0], found.log_probs[0], found.rest[0], found.rule, found.temperatures)


def exact(teacher: torch.Tensor, k: int, rule: str, temperature: float) -> SparseTargets:
    """Targets in float64, made with numpy."""
    z = teacher.numpy()
    log_q = z - np.log(np.exp(z).sum(-1, keepdims=True))
    ids = np.argsort(-log_q, axis=-1)[:, :k]
    others = log_q.copy()
    np.put_along_axis(others, ids, -np.inf, axis=-1)
    with np.errstate(divide="ignore"):  # there may be no others
        rest = np.log(np.exp(others / temperature).sum(-1, keepdims=True))
    listed = torch.from_numpy(np.take_along_axis(log_q, ids, -1))
    return SparseTargets(torch.from_numpy(ids), listed, torch.from_numpy(rest), rule, (temperature,))


def probabilities(z: np.ndarray, temperature: float) -> np.ndarray:
    e = np.exp(z / temperature - (z / temperature).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected(student, teacher, k, rule, temperature, kind="forward_kl", beta=0.5, skew=0.1) -> float:
    """The formulas of the docstring, in numpy."""
    p, q = (probabilities(each.detach().numpy(), temperature) for each in (student, teacher))
    total = []
    for own, theirs in zip(p, q, strict=True):
        best = np.argsort(-theirs)[:k]
        a, b = theirs[best], own[best]
        if rule == "bucket":
            a, b = np.append(a, 1 - a.sum()), np.append(b, 1 - b.sum())
        elif rule == "renormalise":
            a, b = a / a.sum(), b / b.sum()

        def kl(x, y):
            return (x * np.log(x / y)).sum()

        m = beta * a + (1 - beta) * b
        total.append({
            "forward_kl": lambda: kl(a, b), "reverse_kl": lambda: kl(b, a),  # noqa: B023
            "jsd": lambda: beta * kl(a, m) + (1 - beta) * kl(b, m),  # noqa: B023
            "skew_kl": lambda: kl(a, skew * a + (1 - skew) * b),  # noqa: B023
            "skew_reverse_kl": lambda: kl(b, (1 - skew) * a + skew * b),  # noqa: B023
        }[kind]())  # fmt: skip
    return float(np.mean(total) * temperature**2)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("rule", "kind"), [*(("bucket", kind) for kind in KINDS), *(("renormalise", k) for k in KINDS), ("drop", KINDS[0])]
)
def test_each_rule_is_its_formula(rule, kind, temperature):
    student, teacher = logits((7, 23), 0), logits((7, 23), 1)
    found = sparse_divergence(student, exact(teacher, 5, rule, temperature), kind, temperature, beta=0.3, skew=0.2)
    wanted = expected(student, teacher, 5, rule, temperature, kind, beta=0.3, skew=0.2)
    assert found.item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("rule", ["bucket", "drop", "renormalise"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("kept", [[True, False, True, True, False, True], [True] * 6], ids=["some", "all"])
@pytest.mark.parametrize("weight", [None, 0.7], ids=["alone", "with labels"])
def test_gradients_are_those_of_the_plain_formula(rule, temperature, kept, weight):
    teacher, mask = logits((6, 19), 2), torch.tensor(kept)
    targets = exact(teacher, 4, rule, temperature)
    student = logits((6, 19), 3).requires_grad_()
    labels = torch.tensor([3, 1, -100, 7, 18, 0])
    soft, hard = sparse_and_label_loss(
        student, targets, None if weight is None else labels, temperature=temperature, mask=mask
    )
    (soft + (weight or 0) * hard).backward()
    plain = student.detach().clone().requires_grad_()
    p, q = (plain / temperature).softmax(-1)[mask], (teacher / temperature).softmax(-1)[mask]
    a, b = q.gather(1, targets.ids[mask]), p.gather(1, targets.ids[mask])
    if rule == "bucket":
        a, b = torch.cat((a, 1 - a.sum(1, True)), 1), torch.cat((b, 1 - b.sum(1, True)), 1)
    elif rule == "renormalise":
        a, b = a / a.sum(1, True), b / b.sum(1, True)
    expected_hard = torch.nn.functional.cross_entropy(plain[mask], labels[mask])
    expected_soft = (a * (a.log() - b.log())).sum(1).mean() * temperature**2
    (expected_soft + (weight or 0) * expected_hard).backward()
    torch.testing.assert_close(soft.detach(), expected_soft.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(student.grad, plain.grad, rtol=1e-9, atol=1e-12)
    assert not student.grad[~mask].any()


def test_gradients_of_samples_and_with_unused_slots_pass_the_numeric_check():
    ids = torch.tensor([[3, 1, 0], [5, 0, 0]])
    log_probs = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.0, 0.0]], dtype=torch.float64).log()
    rest = torch.tensor([[0.4], [-2.0]], dtype=torch.float64)
    for rule in ("sampled", "bucket", "drop", "renormalise"):
        targets = SparseTargets(ids, log_probs, rest, rule)
        student = logits((2, 7), 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda z, t=targets: sparse_divergence(z, t), (student,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_signals_in_half_precision_lose_little(dtype):
    student, teacher = logits((40, 301), 5, dtype=dtype), logits((40, 301), 6, dtype=dtype)
    for temperature in (1.0, 2.0, 4.0):
        found = float(sparse_divergence(student, targets_of(TopK(16), teacher), temperature=temperature))
        wanted = expected(student.double(), teacher.double(), 16, "bucket", temperature)
        assert found == pytest.approx(wanted, rel=5e-3)


def test_all_tokens_listed_is_the_full_divergence():
    student, teacher = logits((5, 11), 7).requires_grad_(), logits((5, 11), 8)
    full = divergence(student, teacher, temperature=2.0)
    (gradient,) = torch.autograd.grad(full, student)
    for tail in ("bucket", "drop", "renormalise"):
        found = sparse_divergence(student, targets_of(TopK(50, tail), teacher), temperature=2.0)
        assert float(found.detach()) == pytest.approx(float(full.detach()), rel=2e-3)
        torch.testing.assert_close(torch.autograd.grad(found, student)[0], gradient, rtol=0.01, atol=1e-3)


def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient():
    teacher = logits((9, 40), 9)
    student = teacher.clone().requires_grad_()
    for kind in KINDS:
        found = sparse_divergence(student, exact(teacher, 6, "bucket", 1.0), kind)
        assert float(found.detach()) == pytest.approx(0, abs=1e-12)
        assert torch.autograd.grad(found, student)[0].abs().max() < 1e-12


def test_what_a_bucket_and_the_other_rules_keep_of_the_divergence_at_a_large_vocabulary():
    """methods.md: V = 32,000, k = 128: full 0.125; bucket 0.038, dropped 0.075, renormalised 0.119 in one draw."""
    teacher = logits((24, 32_000), 10, scale=2.15)
    student = teacher + logits(teacher.shape, 11, scale=0.5)  # KL of about 0.5² / 2
    full = float(divergence(student, teacher))
    assert full == pytest.approx(0.125, abs=0.005)
    found = {
        tail: [
            float(sparse_divergence(student[[row]], targets_of(TopK(128, tail), teacher[[row]]))) for row in range(24)
        ]
        for tail in ("bucket", "drop", "renormalise")
    }
    assert np.mean(found["bucket"]) == pytest.approx(0.038, abs=0.008), "two thirds of the divergence are lost"
    assert max(found["bucket"]) < full
    assert np.mean(found["renormalise"]) == pytest.approx(0.119, abs=0.01)
    # What is dropped is no bound: it is below the bucket's loss in some draws and far above it in others.
    more = np.asarray(found["drop"]) - np.asarray(found["bucket"])
    assert min(more) < -0.01
    assert max(more) > 0.02


def test_a_bucket_is_a_lower_bound_of_every_kind():
    for seed in range(20):
        student, teacher = logits((1, 60), seed), logits((1, 60), 100 + seed)
        for kind in KINDS:
            part = sparse_divergence(student, exact(teacher, 5, "bucket", 1.0), kind)
            assert 0 <= float(part) <= float(divergence(student, teacher, kind)) + 1e-12


def drawn(signals: Signals, student: torch.Tensor, teacher: torch.Tensor, key: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one draw."""
    targets = targets_of(signals, teacher, key.to_bytes(16, "little"))
    found = sparse_divergence(student, targets, temperature=targets.temperatures[0])
    return float(found.detach()), torch.autograd.grad(found, student)[0]


@pytest.mark.parametrize("scale", [0.3, 1.5, 4.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_are_unbiased_in_loss_and_gradient_and_top_k_is_not(temperature, scale):
    student, teacher = logits((3, 50), 12, scale).requires_grad_(), logits((3, 50), 13, scale)
    full = divergence(student, teacher, temperature=temperature)
    (wanted,) = torch.autograd.grad(full, student)
    draws = [drawn(Sampled(10, temperature), student, teacher, seed) for seed in range(400)]
    # Along random directions: single tokens of small probability are in few draws, or in none.
    along = logits((150, 20), 26)
    losses = np.asarray([loss for loss, _ in draws])
    slopes = torch.stack([gradient.reshape(-1) @ along for _, gradient in draws])
    error = losses.std() / math.sqrt(len(losses)) + 1e-3 * float(full.detach())
    assert abs(losses.mean() - float(full.detach())) < 4 * error
    errors = slopes.std(0) / math.sqrt(len(slopes)) + 1e-3
    off = slopes.mean(0) - wanted.reshape(-1) @ along
    assert (off.abs() < 4 * errors).all()
    if scale == 1.5:
        top, gradient = drawn(TopK(10, temperatures=[temperature]), student, teacher, 0)
        assert abs(top - float(full.detach())) > 6 * error
        assert ((gradient - wanted).reshape(-1) @ along / errors).abs().max() > 8


def test_a_token_is_drawn_as_often_as_its_weight_makes_up_for():
    """`n` different tokens; q/c of the draws have one of probability q below c, and all have the likelier ones."""
    teacher = logits((1, 40), 21, 2.0)
    q = torch.softmax(teacher[0], -1).numpy()
    kept = np.zeros(40)
    for seed in range(2000):
        targets = targets_of(Sampled(8), teacher, seed.to_bytes(16, "little"))
        ids = targets.ids[0].tolist()
        assert len({*ids}) == 8
        kept[ids] += 1 / 2000
        weights = torch.maximum(targets.log_probs, targets.rest).exp()
        assert float(weights.sum()) == pytest.approx(1, abs=2e-3)
    c = float(targets.rest.exp())
    wanted = np.minimum(1, q / c)
    assert wanted.sum() == pytest.approx(8, abs=1e-2)
    assert (np.abs(kept - wanted) < 4.5 * np.sqrt(wanted * (1 - wanted) / 2000) + 1e-3).all()


def test_samples_have_less_noise_than_as_many_drawn_one_by_one():
    """Against the estimate of Anshumann et al. 2025 from 16 draws, made here with numpy."""
    random, z = np.random.default_rng(0), logits((1, 400), 22, 3.0)
    q = torch.softmax(z[0], -1).numpy()
    alone, ours = np.zeros((300, 400)), np.zeros((300, 400))
    for seed in range(300):
        np.add.at(alone[seed], random.choice(400, 16, p=q), 1 / 16)
        targets = targets_of(Sampled(16), z, seed.to_bytes(16, "little"))
        np.add.at(ours[seed], targets.ids[0].numpy(), torch.maximum(targets.log_probs, targets.rest)[0].exp().numpy())
    noise = [((each - q) ** 2).sum(-1).mean() for each in (alone, ours)]
    assert noise[1] < noise[0] / 3


def test_more_samples_have_less_noise_and_one_row_has_one_draw():
    student, teacher = logits((4, 500), 14, 0.5).requires_grad_(), logits((4, 500), 15, 0.5)

    def losses(n: int) -> list[float]:
        return [drawn(Sampled(n), student, teacher, seed)[0] for seed in range(100)]

    few, many = losses(4), losses(64)
    assert np.std(few) / np.std(many) == pytest.approx(4, rel=0.35)
    assert losses(4) == few
    rows, mask = teacher[None].repeat(2, 1, 1), torch.ones(2, 4, dtype=torch.bool)
    keys = [bytes([7] * 16), bytes([9] * 16)]
    together = Sampled(4).capture(rows, mask, keys)
    for row, key in zip(together, keys, strict=True):
        (single,) = Sampled(4).capture(teacher[None], mask[:1], [key])
        assert all(np.array_equal(row[name], single[name]) for name in row)


def test_samples_of_a_certain_teacher_and_of_all_tokens_are_exact():
    student = logits((2, 9), 23).requires_grad_()
    for teacher, n in ((logits((2, 9), 24), 9), (logits((2, 9), 24), 50), (torch.eye(2, 9).double() * 500, 4)):
        full = divergence(student, teacher)
        loss, gradient = drawn(Sampled(n), student, teacher, 1)
        assert loss == pytest.approx(float(full.detach()), rel=2e-3)
        torch.testing.assert_close(gradient, torch.autograd.grad(full, student)[0], rtol=0.01, atol=1e-3)
    impossible = logits((2, 9), 25)
    impossible[:, 2:] = -math.inf
    loss, _ = drawn(Sampled(4), student, impossible, 1)
    assert loss == pytest.approx(float(divergence(student, impossible).detach()), rel=2e-3)


def test_a_small_rest_keeps_its_digits():
    """1 minus the listed probabilities is 0 in fp32, and its logarithm -∞."""
    student = torch.zeros(1, 10)
    student[0, 0] = 40.0
    targets = SparseTargets(torch.tensor([[0]]), torch.tensor([[-1e-9]]), torch.tensor([[math.log(1e-9)]]), "bucket")
    wanted = 1e-9 * (math.log(1e-9) - (math.log(9) - 40)) + (1 - 1e-9) * -1e-9
    assert float(sparse_divergence(student, targets)) == pytest.approx(wanted, rel=0.1)


def test_masked_positions_do_not_reach_the_loss_even_as_nan():
    teacher, mask = logits((4, 12), 16), torch.tensor([True, True, False, True])
    student = logits((4, 12), 17)
    student[2] = math.nan
    student.requires_grad_()
    found = sparse_divergence(student, targets_of(TopK(3), teacher), mask=mask)
    found.backward()
    assert math.isfinite(float(found.detach()))
    assert torch.isfinite(student.grad).all()
    nothing = sparse_divergence(student, targets_of(TopK(3), teacher), mask=torch.zeros(4, dtype=torch.bool))
    assert float(nothing.detach()) == 0.0


def test_options_that_do_not_fit_the_targets_are_refused():
    student, targets = logits((2, 9), 18), targets_of(TopK(3), logits((2, 9), 19))
    with pytest.raises(DefinitionError, match=r"temperature 3.*stored for 1, 2, 4.*TopK\(temperatures="):
        sparse_divergence(student, targets, temperature=3.0)
    with pytest.raises(DefinitionError, match="forward KL only, not reverse_kl"):
        sparse_divergence(student, targets_of(Sampled(4), logits((2, 9), 19)), "reverse_kl")
    with pytest.raises(DefinitionError, match="describe the same positions"):
        sparse_divergence(student[:1], targets)
    assert math.isfinite(float(sparse_divergence(student, targets_of(TopK(3, "renormalise"), student), temperature=3)))
    for wrong, message in (
        (lambda: TopK(0), "k is 0"),
        (lambda: TopK(2, "buckets"), 'tail "buckets" is unknown.*"bucket"'),
        (lambda: TopK(2, temperatures=[0.0]), "temperature is 0"),
        (lambda: Sampled(0), "n is 0"),
        (lambda: Sampled(temperature=-1.0), "temperature is -1"),
    ):
        with pytest.raises(DefinitionError, match=message):
            wrong()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("rule", ["bucket", "drop", "renormalise", "sampled"])
def test_labels_beside_targets_add_the_cross_entropy_and_nothing_else(rule, temperature):
    student, teacher = logits((6, 23), 20).requires_grad_(), logits((6, 23), 27)
    labels, mask = torch.tensor([3, -100, 0, 12, 7, 5]), torch.tensor([True, True, True, False, True, True])
    targets = exact(teacher, 5, rule, temperature)
    soft, hard = sparse_and_label_loss(student, targets, labels, temperature=temperature, mask=mask)
    alone = sparse_divergence(student, targets, temperature=temperature, mask=mask)
    wanted = torch.nn.functional.cross_entropy(student[mask], labels[mask])
    assert float(soft.detach()) == pytest.approx(float(alone.detach()), rel=1e-12)
    assert float(hard.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    gradients = [torch.autograd.grad(0.3 * a + 0.7 * b, student)[0] for a, b in ((soft, hard), (alone, wanted))]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.25, 2.0, 4.0])
def test_labels_beside_targets_keep_the_digits_of_unlikely_tokens_in_single_precision(temperature):
    student, teacher = logits((8, 300), 28, 12.0), logits((8, 300), 29, 4.0)
    labels = student.argmin(-1)
    found = {}
    for dtype in (torch.float64, torch.float32):
        own = student.to(dtype).requires_grad_()
        both = sparse_and_label_loss(own, exact(teacher, 5, "bucket", temperature), labels, temperature=temperature)
        found[dtype] = [*both, torch.autograd.grad(sum(both), own)[0]]
    for exactly, shortly in zip(*found.values(), strict=True):
        torch.testing.assert_close(shortly.double(), exactly, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_of_probability_zero_on_both_sides_leave_the_gradient_finite(kind, temperature):
    none = torch.full((4, 3), -math.inf, dtype=torch.float64)  # a head that is wider than the tokens in use
    student, teacher = logits((4, 6), 30).requires_grad_(), torch.cat((logits((4, 6), 31), none), -1)
    labels = torch.tensor([0, 5, 2, 1])
    whole = divergence(student, teacher[:, :6], kind, temperature) + torch.nn.functional.cross_entropy(student, labels)
    wanted = torch.autograd.grad(whole, student)[0]
    for k in (4, 6, 8):
        wide = torch.cat((student, none), -1).detach().requires_grad_()
        targets = exact(teacher, k, "bucket", temperature)
        soft, hard = sparse_and_label_loss(wide, targets, labels, kind, temperature)
        found = torch.autograd.grad(soft + hard, wide)[0]
        assert (found[:, 6:] == 0).all()
        if k >= 6:
            torch.testing.assert_close(found[:, :6], wanted)


@pytest.mark.parametrize(
    ("width", "labels", "message"),
    [
        (6, None, r"list token 8, and the student's logits have 6 tokens"),
        (9, [0, 9], "label 9 is none of the 9 classes"),
        (9, [0, -1], "label -1 is none of the 9 classes"),
        (9, [0], "but the labels"),
        (9, [[0], [1]], "but the labels"),
    ],
)
def test_ids_and_labels_that_the_student_does_not_have_are_refused(width, labels, message):
    targets = exact(logits((2, 9), 32), 9, "bucket", 1.0)
    own = None if labels is None else torch.tensor(labels)
    with pytest.raises(DefinitionError, match=message):
        sparse_and_label_loss(logits((2, width), 33), targets, own)
