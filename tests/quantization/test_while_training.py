"""Quantization while training: the formulas and gradients in float64, and what is stored computes what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import batches, build, logits
from torch import nn
from torch.nn import functional as F

from datadreamer_like import formats
from datadreamer_like.errors import DefinitionError, EmptyDataset, MethodMisfit
from datadreamer_like.formats.binary import BinaryLinear
from datadreamer_like.formats.int8 import Int8Linear
from datadreamer_like.formats.modules import block_linears, weight_of
from datadreamer_like.formats.uniform import UniformLinear
from datadreamer_like.kernels import int8_linear
from datadreamer_like.quantization import QAT, AbsMax, BinaryNetwork
from datadreamer_like.quantization.while_training import FakeQuantized

Double = torch.float64


def int8(x: torch.Tensor) -> torch.Tensor:
    s = x.abs().amax(-1, keepdim=True) / 127
    return s * (x / s).round()


def int4(w: torch.Tensor, size: int) -> torch.Tensor:
    found = []
    for part in w.split(size, dim=1):
        s = (part.abs().amax(1, keepdim=True) / 7.5).half().double()
        found.append(s * (part / s).round().clamp(-8, 7))
    return torch.cat(found, 1)


def sign(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 0, 1.0, -1.0).double()


def quantized(method: Any, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """What the method makes of inputs and a weight, in float64, and the factor of the product."""
    x, w = x.detach().double(), w.detach().double()
    if isinstance(method, BinaryNetwork):
        return sign(x), sign(w), w.abs().mean(1) if method.scaled else 1.0
    return (int8(x), int8(w), 1.0) if method.bits == 8 else (x, int4(w, method.group_size), 1.0)


METHODS = {
    "int8": QAT(8, learning_rate=1e-3),
    "int4": QAT(4, group_size=12, learning_rate=1e-3),
    "binary": BinaryNetwork(learning_rate=1e-3),
    "scaled binary": BinaryNetwork(scaled=True, learning_rate=1e-3),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_product_and_its_gradients_are_those_of_the_formulas(name: str) -> None:
    method = METHODS[name]
    torch.manual_seed(0)
    x, w = (1.2 * torch.randn(2, 5, 20)).requires_grad_(), torch.randn(7, 20, requires_grad=True)
    b = torch.randn(7, requires_grad=True)
    out = torch.randn(2, 5, 7)
    y = method.product(x, w, b)
    (y * out).sum().backward()
    xq, wq, scale = quantized(method, x, w)
    torch.testing.assert_close(y.double(), xq @ wq.T * scale + b.double(), rtol=1e-5, atol=1e-5)
    grad = out.double() * scale
    expected_x, expected_w = grad @ wq, grad.flatten(0, 1).T @ xq.flatten(0, 1)
    if isinstance(method, BinaryNetwork):  # cancelled where the number is beyond ±1
        expected_x, expected_w = expected_x * (x.abs() <= 1), expected_w * (w.abs() <= 1)
    torch.testing.assert_close(x.grad.double(), expected_x, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(w.grad.double(), expected_w, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(b.grad.double(), out.double().sum((0, 1)), rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_stored_computes_what_was_trained(family: str, name: str, tmp_path: Path) -> None:
    method, model = METHODS[name], build(family)
    given = batches(model)
    trained = copy.deepcopy(model)
    method.begin(trained)
    names = {each for each, module in trained.named_modules() if isinstance(module, FakeQuantized)}
    assert names == set(block_linears(model))
    assert set(trained.state_dict()) == set(model.state_dict())
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-2)
    for step in (1, 2):
        trained(**given[0]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(trained, step, 2)
    expected = logits(trained, given[1])
    weights = {each: trained.get_submodule(each).weight.detach().clone() for each in names}
    inputs: dict[str, torch.Tensor] = {}
    method.end(trained)
    for each in names:
        trained.get_submodule(each).register_forward_pre_hook(lambda _, args, each=each: inputs.update({each: args[0]}))
    found = logits(trained, given[1])
    if isinstance(method, BinaryNetwork) or method.bits == 4:
        assert torch.equal(found, expected)
    else:  # processors round activations to 8 or 7 bits
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    for each in names:
        module = trained.get_submodule(each)
        weight = weights[each].T if module.was_conv1d else weights[each]
        if isinstance(module, Int8Linear):
            ours = int8_linear(inputs[each], module.weight, module.weight_scale, module.bias, backend="reference")
        else:
            assert isinstance(module, UniformLinear | BinaryLinear)
            ours = module(inputs[each])
        torch.testing.assert_close(ours, method.product(inputs[each], weight, module.bias), rtol=1e-5, atol=1e-5)
    trained.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again, given[1]), found)
    assert formats.stored_bytes(again) < 0.7 * formats.stored_bytes(model)


def test_training_makes_up_for_the_rounding() -> None:
    torch.manual_seed(0)
    student, x = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)), torch.randn(256, 16)

    class Net(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            out = self.inner(x)
            return type("Outputs", (), {"loss": out if labels is None else (out - labels).square().mean()})()

    model = Net(student)
    given = [{"x": x, "labels": student(x).detach()}]
    trained = QAT(4, group_size=16, epochs=300, learning_rate=3e-4).apply(model, given)
    with torch.no_grad():
        losses = [float(each(**given[0]).loss) for each in (trained, AbsMax(4, 16).apply(model))]
    assert losses[0] < 0.7 * losses[1]


def test_a_binary_network_learns_clips_its_weights_and_keeps_its_first_and_last_layers() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 3)
            )

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
            out = self.layers(x)
            return type("Outputs", (), {"loss": F.cross_entropy(out, labels), "logits": out})()

    x = torch.randn(200, 8)
    given = {"x": x, "labels": (x @ torch.randn(8, 3)).argmax(1)}
    model, method = Net(), BinaryNetwork()
    with torch.no_grad():
        model.layers[2].weight.mul_(12)  # some beyond 1
    method.begin(model)
    assert [type(layer) for layer in model.layers[::2]] == [nn.Linear, FakeQuantized, nn.Linear]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(1, 101):
        loss = model(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model, step, 100)
        losses.append(float(loss.detach()))
        assert float(model.layers[2].weight.detach().abs().max()) <= 1
    assert losses[-1] < 0.3 * losses[0]
    model.eval()
    expected = model(**given).logits
    method.end(model)
    assert isinstance(model.layers[2], BinaryLinear)
    assert torch.equal(model(**given).logits, expected)


def test_gradients_flow_through_a_stored_binary_layer_as_in_training() -> None:
    torch.manual_seed(0)
    layer, method = nn.Linear(20, 6), BinaryNetwork(scaled=True)
    x = torch.randn(3, 20, requires_grad=True)
    method.coded("", layer)(x).sum().backward()
    stored, x.grad = x.grad, None
    method.product(x, layer.weight, layer.bias).sum().backward()
    torch.testing.assert_close(x.grad, stored)


def test_bad_options_data_and_models_are_refused() -> None:
    with pytest.raises(DefinitionError, match="bits is 3; QAT has 8"):
        QAT(3)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="epochs=0"):
        QAT(epochs=0)
    with pytest.raises(DefinitionError, match="learning_rate=nan"):
        BinaryNetwork(learning_rate=float("nan"))
    model = build("bert")
    with pytest.raises(EmptyDataset, match="QAT"):
        QAT().apply(model, [])
    with pytest.raises(DefinitionError, match="measures the model on data"):
        BinaryNetwork().apply(model)
    with pytest.raises(MethodMisfit, match="quantized already"):
        QAT().apply(AbsMax().apply(model), batches(model))
    with pytest.raises(MethodMisfit, match="no nn.Linear or Conv1D"):
        BinaryNetwork().apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), [{}])
    with torch.no_grad():
        weight_of(model.get_submodule("bert.encoder.layer.0.output.dense"))[0, 0] = float("nan")
    with pytest.raises(MethodMisfit, match="infinities or NaN"):
        QAT(learning_rate=1e-3).apply(model, batches(model))
