"""The fused loss and its gradients against the written formula, materialised in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import fused_linear_divergence

from .interpreted import INTERPRETED, passes_interpreted

KINDS = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]


def formula(kind: str, p: Tensor, q: Tensor, beta: float = 0.3, skew: float = 0.2) -> Tensor:
    """The divergences as in the papers, for probabilities [rows, classes] that are not 0."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    m = beta * q + (1 - beta) * p
    return {
        "forward_kl": kl(q, p),
        "reverse_kl": kl(p, q),
        "jsd": beta * kl(q, m) + (1 - beta) * kl(p, m),
        "skew_kl": kl(q, skew * q + (1 - skew) * p),
        "skew_reverse_kl": kl(p, (1 - skew) * q + skew * p),
    }[kind]


class Case:
    """Two models' hidden states and heads, some tokens unlabelled, and the loss that is right, with its gradients."""

    def __init__(self, tokens: int = 19, words: int = 211, device: str = "cpu", dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(tokens * words)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)

        self.student = [draw(tokens, 24), draw(words, 24, scale=0.5), draw(words)]
        self.teacher = [draw(tokens, 40), draw(words, 40, scale=0.3), draw(words)]
        self.labels = torch.randint(words, (tokens,), generator=generator).to(device)
        self.labels[::5] = -100

    def right(self, kind: str, temperature: float, alpha: float) -> tuple[Tensor, list[Tensor]]:
        student = [part.detach().double().requires_grad_() for part in self.student]
        z = student[0] @ student[1].T + student[2]
        t = self.teacher[0].double() @ self.teacher[1].double().T + self.teacher[2].double()
        kept = self.labels != -100
        p, q = ((logits / temperature).softmax(-1)[kept] for logits in (z, t))
        soft = temperature**2 * formula(kind, p, q).mean()
        hard = -z.log_softmax(-1)[kept, self.labels[kept]].mean()
        loss = alpha * soft + (1 - alpha) * hard
        return loss.detach(), list(torch.autograd.grad(loss, student))

    def ours(self, kind: str, temperature: float, alpha: float, **options: object) -> tuple[Tensor, list[Tensor]]:
        student = [part.detach().requires_grad_() for part in self.student]
        biases = {"student_bias": student[2], "teacher_bias": self.teacher[2]}
        options |= {"kind": kind, "temperature": temperature, "alpha": alpha, "beta": 0.3, "skew": 0.2}
        loss = fused_linear_divergence(*student[:2], *self.teacher[:2], self.labels, **biases, **options)
        loss.backward()
        return loss.detach(), [part.grad for part in student]


BACKENDS = ["reference", "cpu", *(["triton"] if INTERPRETED else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.5, 0.7), (2.0, 0.0)])
def test_loss_and_gradients_are_those_of_the_formula(kind, temperature, alpha, backend):
    case = Case()
    loss, gradients = case.right(kind, temperature, alpha)
    found, ours = case.ours(kind, temperature, alpha, backend=backend, chunk=8)
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    for gradient, right in zip(ours, gradients, strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_its_logits_are(dtype, backend):
    case = Case(dtype=dtype)
    loss, gradients = case.right("jsd", 1.0, 0.5)
    found, ours = case.ours("jsd", 1.0, 0.5, backend=backend, chunk=16)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss.item(), rel=0.02)
    for gradient, right in zip(ours, gradients, strict=True):
        assert float((gradient.double() - right).norm() / right.norm()) < 0.02


@pytest.mark.skipif(INTERPRETED, reason="Triton has no float64 backend here")
@pytest.mark.parametrize("chunk", [1, 7, 19, 1000])
def test_the_size_of_a_chunk_changes_nothing(chunk):
    case = Case(dtype=torch.float64)
    loss, gradients = case.right("reverse_kl", 1.5, 0.4)
    found, ours = case.ours("reverse_kl", 1.5, 0.4, backend="cpu", chunk=chunk)
    torch.testing.assert_close([found, *ours], [loss, *gradients], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_models_have_no_loss_and_no_gradient(kind, backend):
    case = Case()
    case.teacher = case.student
    found, ours = case.ours(kind, 2.0, 1.0, backend=backend)
    assert found.item() == pytest.approx(0.0, abs=1e-5)
    assert max(float(gradient.abs().max()) for gradient in ours) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_words_that_one_model_lacks_have_probability_0_there(backend):
    case = Case()
    narrow = [part[:200] if part.shape[0] == 211 else part for part in case.teacher]
    wide, case.teacher = case.teacher, narrow
    found, _ = case.ours("jsd", 1.0, 1.0, backend=backend)
    z, t = (a @ b.T + c for a, b, c in (case.student, narrow))
    t = F.pad(t, (0, 11), value=-100.0)  # as good as never
    right = formula("jsd", z.softmax(-1), t.softmax(-1) + 1e-30)[case.labels != -100].mean()
    assert found.item() == pytest.approx(float(right), rel=1e-4)

    case.student = [part[:200] if part.shape[0] == 211 else part for part in case.student]
    case.labels = case.labels.clamp(max=199)
    cut, _ = case.ours("forward_kl", 1.0, 1.0, backend=backend)
    case.teacher = wide
    assert float(case.ours("forward_kl", 1.0, 1.0, backend=backend)[0]) == pytest.approx(float(cut), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_that_is_not_trained_gets_no_gradient(backend):
    case = Case()
    hidden = case.student[0].clone().requires_grad_()
    loss = fused_linear_divergence(hidden, case.student[1], *case.teacher[:2], backend=backend)
    (3 * loss).backward()
    plain = case.student[0].clone().requires_grad_()
    p, q = (plain @ case.student[1].T).log_softmax(-1), (case.teacher[0] @ case.teacher[1].T).log_softmax(-1)
    (3 * (q.exp() * (q - p)).sum(-1).mean()).backward()
    torch.testing.assert_close(hidden.grad, plain.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_token_that_counts_gives_0_without_a_gradient(backend):
    case = Case()
    case.labels[:] = -100
    loss, gradients = case.ours("forward_kl", 1.0, 0.5, backend=backend)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients)


def test_without_gradients_the_loss_is_the_same():
    case = Case()
    with torch.no_grad():
        loss = fused_linear_divergence(*case.student[:2], *case.teacher[:2], kind="reverse_kl", backend=BACKENDS[-1])
    p, q = ((a @ b.T).log_softmax(-1) for a, b, _ in (case.student, case.teacher))
    assert loss.item() == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)


def test_autocast_decides_the_type_of_the_logits():
    case = Case()
    hidden, head = (part.clone().requires_grad_() for part in case.student[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused_linear_divergence(hidden, head, *case.teacher[:2], chunk=8)
    loss.backward()
    exact = fused_linear_divergence(*case.student[:2], *case.teacher[:2])
    assert float(loss.detach()) == pytest.approx(exact.item(), rel=0.02)
    assert float(loss.detach()) != exact.item()
    assert head.grad.dtype == hidden.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"chunk": -1}, "chunk is -1; it must be at least 1"),
        ({"chunk": 0}, "chunk is 0; it must be at least 1"),
        ({"chunk": 2.0}, "chunk must be a whole number"),
        ({"chunk": True}, "chunk must be a whole number"),
        ({"labels": torch.full((19,), -1)}, "labels have -1; the .* tokens are numbered from 0"),
        ({"labels": torch.full((19,), 10_000)}, "labels have 10000; the"),
        ({"labels": torch.zeros(19)}, "labels are of type torch.float32"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"kind": "jsd", "beta": 1.0}, "beta is 1.0"),
        ({"kind": "kl"}, 'no divergence "kl"'),
        ({"alpha": 0.5, "labels": None}, "labels have weight 0.5"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels \[3\]"),
        ({"teacher_head": torch.zeros(211, 39)}, r"teacher_head \[211, 39\]"),
        ({"student_bias": torch.zeros(7)}, r"student_bias \[7\]"),
        ({"backend": "cuda"}, 'no backend "cuda"'),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    case = Case()
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head", "labels")
    given = dict(zip(names, [*case.student[:2], *case.teacher[:2], case.labels], strict=True))
    with pytest.raises(DefinitionError, match=message):
        fused_linear_divergence(**(given | options))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes tensors on the CPU")
def test_the_gpu_kernel_is_refused_where_there_is_no_gpu():
    case = Case()
    with pytest.raises(DefinitionError, match=r'backend="triton" .* Choose "cpu"'):
        fused_linear_divergence(*case.student[:2], *case.teacher[:2], backend="triton")


def test_a_second_backward_is_refused():
    case = Case()
    loss = fused_linear_divergence(case.student[0].clone().requires_grad_(), case.student[1], *case.teacher[:2])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.skipif(INTERPRETED, reason="it is the interpreted run")
def test_the_gpu_kernel_passes_these_tests_in_tritons_interpreter():
    passes_interpreted(__file__, "triton or without")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.filterwarnings("ignore::UserWarning")  # Triton warns of a default that will change
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_gpu_kernel_compiles_without_a_gpu(kind):
    triton = pytest.importorskip("triton")
    backends = pytest.importorskip("triton.backends.compiler")
    from datadreamer_like.kernels.triton.fused_linear_divergence import _rows_kernel as kernel

    constants = {"KIND": kind, "SOFT": True, "HARD": True, "GRADED": True, "BLOCK": 1024}
    types = {"student": "*bf16", "teacher": "*bf16", "labels": "*i64", "losses": "*fp32"}
    numbers = ("inverse_temperature", "soft_loss", "soft_gradient", "hard_weight", "share")
    types |= {**dict.fromkeys(numbers, "fp32"), **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=places)
    compiled = triton.compile(source, target=backends.GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "words"), [(37, 211), (129, 32_003), (512, 128_000)])
def test_the_gpu_kernel_gives_the_formula_on_a_gpu(kind, tokens, words):
    case = Case(tokens, words, "cuda")
    for temperature, alpha in ((1.0, 1.0), (2.0, 0.5)):
        loss, gradients = case.right(kind, temperature, alpha)
        found, ours = case.ours(kind, temperature, alpha, backend="triton", chunk=100)
        assert found.item() == pytest.approx(loss.item(), rel=1e-3)
        for gradient, right in zip(ours, gradients, strict=True):
            assert float((gradient.double() - right).norm() / right.norm()) < 2e-3
    assert math.isfinite(found.item())
