"""The int8 linear layer against integer arithmetic in numpy, on every engine and as on processors without VNNI."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import absmax_quantize, int8_linear, int8_matmul, pack_int8_weight
from datadreamer_like.kernels.int8 import ENGINES, fastest_engine, is_exact

# (rows, in, out): one row, odd sizes, one feature, several blocks of rows, sums beyond what fp32 adds exactly
CASES = [(1, 384, 96), (5, 77, 65), (3, 1, 1), (1000, 129, 31), (17, 3000, 24)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layer(rows, inputs, outputs, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + inputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    codes, scale = absmax_quantize(weight, axis=-1)
    x = (torch.randn(rows, inputs, generator=generator) * torch.rand(rows, 1, generator=generator)).to(dtype)
    return x, codes, scale, torch.randn(outputs, generator=generator).to(dtype)


def in_numpy(x, codes, scale, bias, granularity, largest):
    x = x.float().numpy()
    axis = 1 if granularity == "token" else None
    # The scale is rounded to fp32 as the kernel's is, for the same codes; all else is exact.
    x_scale = (np.abs(x).max(axis=axis, keepdims=True) / np.float32(largest)).astype(np.float32)
    x_codes = np.rint(x / x_scale).astype(np.int64)
    product = x_codes @ codes.numpy().astype(np.int64).T
    return product * x_scale.astype(np.float64) * scale.numpy().astype(np.float64).T + bias.float().numpy()


def test_integer_products_are_exact_whatever_their_size():
    a = torch.full((2, 3, 5000), 127, dtype=torch.int8)
    b = torch.full((4, 5000), -127, dtype=torch.int8)
    b[1] = torch.arange(5000).remainder(255).sub(127).to(torch.int8)
    wanted = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T
    assert int8_matmul(a, b).dtype == torch.int32
    np.testing.assert_array_equal(int8_matmul(a, b).numpy(), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(int8_matmul(a, b).numpy(), wanted)


@pytest.mark.parametrize("granularity", ["token", "tensor"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("case", CASES)
def test_every_path_is_integer_arithmetic(case, dtype, granularity):
    x, codes, scale, bias = layer(*case, dtype)
    paths = [(None, 127, None), ("reference", 127, None), ("reference", 63, 7)]
    packed = pack_int8_weight(codes, scale)
    if packed is None:
        paths = paths[1:]
    else:
        paths = [(None, packed.largest, None), ("cpu", packed.largest, None), ("cpu", 63, 7), *paths[1:]]
    for backend, largest, bits in paths:
        y = int8_linear(x, codes, scale, bias, granularity=granularity, backend=backend, activation_bits=bits)
        wanted = torch.from_numpy(in_numpy(x, codes, scale, bias, granularity, largest))
        assert y.dtype == dtype
        assert float((y.double() - wanted).norm() / wanted.norm()) < TOLERANCE[dtype], (backend, bits)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_that_is_exact_here_gives_the_same_products(engine):
    try:
        exact = is_exact(engine)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        pytest.skip(f"this machine has no such engine: {error}")
    if not exact:
        pytest.skip("eight bits overflow on this processor")
    x, codes, scale, _ = layer(9, 1500, 70)
    packed = engine(codes, scale)
    whole = (x / x.abs().amax(1, keepdim=True) * packed.largest).round()
    wanted = whole.double() @ codes.double().T * scale.double().T
    found = packed.product(whole)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-6


OTHER_PROCESSOR = """
import torch
from datadreamer_like.kernels import absmax_quantize, int8_linear, pack_int8_weight
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.rand(20, 1500) + 0.5
codes, scale = absmax_quantize(torch.rand(40, 1500) + 0.5, axis=-1)
packed = pack_int8_weight(codes, scale)
assert packed is None or packed.largest == 63, packed
y = int8_linear(x, codes, scale)
wanted = x.double() @ (codes * scale).double().T
print(float((y - wanted).norm() / wanted.norm()))
"""


@pytest.mark.skipif(fastest_engine() is None, reason="this machine has no int8 engine")
def test_without_vnni_activations_get_seven_bits_and_nothing_overflows():
    # Both libraries can be told to use no more than AVX2, whose int8 products saturate.
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    run = [sys.executable, "-W", "error", "-c", OTHER_PROCESSOR]
    out = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < 0.01


def test_packing_warns_of_nothing_and_leaves_the_quantized_engine_alone():
    x, codes, scale, bias = layer(4, 32, 16)
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        int8_linear(x, codes, scale, bias, packed=pack_int8_weight(codes, scale))
    assert torch.backends.quantized.engine == before


def test_a_token_does_not_hang_on_its_batch():
    x, codes, scale, bias = layer(6, 64, 32)
    alone = int8_linear(x[2:3], codes, scale, bias)
    x[5] *= 1000
    assert torch.equal(int8_linear(x, codes, scale, bias)[2:3], alone)


def test_tokens_have_a_smaller_error_than_the_tensor_as_a_whole():
    x, codes, scale, bias = layer(50, 256, 64)
    wanted = x.double() @ (codes * scale).double().T + bias

    def error(granularity):
        return float((int8_linear(x, codes, scale, bias, granularity=granularity) - wanted).norm())

    assert error("token") < error("tensor")


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_none_and_in_its_row(value, backend):
    x, codes, scale, bias = layer(3, 40, 8)
    wanted = int8_linear(x, codes, scale, bias, backend=backend)
    x[1, 5] = value
    y = int8_linear(x, codes, scale, bias, backend=backend)
    assert not y[1].isfinite().any()
    assert torch.equal(y[[0, 2]], wanted[[0, 2]])


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (2, 3, 8), (8,)])
def test_leading_dimensions_are_kept(shape):
    _, codes, scale, bias = layer(1, 8, 5)
    for backend in (None, "reference"):
        assert int8_linear(torch.ones(shape), codes, scale, bias, backend=backend).shape == (*shape[:-1], 5)


def test_gradients_pass_as_if_nothing_was_rounded():
    x, codes, scale, bias = layer(6, 20, 9)
    x.requires_grad_()
    bias.requires_grad_()
    weights = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    (int8_linear(x, codes, scale, bias) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ (codes * scale))
    torch.testing.assert_close(bias.grad, weights.sum(0))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"weight": torch.ones(4, 8)}, {}),
        ({"weight": torch.ones(4, 9, dtype=torch.int8)}, {}),
        ({"scale": torch.ones(3, 1)}, {}),
        ({}, {"granularity": "row"}),
        ({}, {"backend": "triton"}),
        ({}, {"activation_bits": 9}),
    ],
)
def test_what_does_not_fit_is_refused(change, options):
    weight = change.get("weight", torch.ones(4, 8, dtype=torch.int8))
    with pytest.raises(DefinitionError):
        int8_linear(torch.ones(2, 8), weight, change.get("scale", torch.ones(4, 1)), **options)
    with pytest.raises(DefinitionError):
        int8_matmul(torch.ones(2, 8), torch.ones(4, 8))
