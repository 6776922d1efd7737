"""The convolution with its own double backward, and max-pooling with its own, against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meta_learning.operations.convolution import Geometry, convolve
from meta_learning.operations.max_pooling import pool_and_activate
from tests.tools.gate import few_of

GEOMETRIES = {
    "plain": Geometry((1, 1), (1, 1), (1, 1), 1),
    "a task in each group": Geometry((1, 1), (1, 1), (1, 1), 3),
    "stride, no padding": Geometry((2, 2), (0, 0), (1, 1), 3),
    "dilated": Geometry((1, 2), (2, 1), (2, 1), 1),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random float64 values that want a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("with_bias", few_of([True, False], True))
def test_first_and_second_derivatives_equal_finite_differences(geometry, with_bias):
    x, weight = drawn(2, 2 * geometry.groups, 6, 5), drawn(2 * geometry.groups, 2, 3, 3, seed=1)
    bias = drawn(2 * geometry.groups, seed=2) if with_bias else None
    inputs = (x, weight, bias) if with_bias else (x, weight)

    def function(x, weight, bias=None):
        return convolve(x, weight, bias, geometry)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=["both", "input", "weight"])
def test_second_derivatives_equal_torchs_where_not_everything_wants_one(wanted):
    geometry = GEOMETRIES["a task in each group"]
    results = []
    for function in (convolve, lambda x, weight, bias, geometry: F.conv2d(x, weight, bias, *geometry)):
        x, weight = drawn(2, 6, 6, 5).detach(), drawn(6, 2, 3, 3, seed=1).detach()
        inputs = [tensor.requires_grad_() for tensor, wants in zip((x, weight), wanted, strict=True) if wants]
        out = function(x, weight, None, geometry)
        first = torch.autograd.grad((out**3).sum(), inputs, create_graph=True)
        results.append([*first, *torch.autograd.grad(sum((gradient**2).sum() for gradient in first), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_convolution_keeps_the_memory_format_of_its_input():
    x = drawn(2, 6, 6, 5).to(memory_format=torch.channels_last).float()
    out = convolve(x, drawn(6, 2, 3, 3).float(), None, GEOMETRIES["a task in each group"])
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width", "window"), [(6, 4, (2, 2)), (7, 5, (2, 2)), (1, 6, (1, 2))])
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_max_pooling_with_a_leaky_relu_and_its_derivatives_equal_torchs(memory_format, height, width, window, slope):
    results = []
    for function in (pool_and_activate, lambda x, window, slope: F.max_pool2d(F.leaky_relu(x, slope), window)):
        x = drawn(2, 3, height, width).detach().to(memory_format=memory_format).requires_grad_()
        out = function(x, window, slope)
        (first,) = torch.autograd.grad((out**3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2 * x).sum(), x)
        results.append((out, first, second))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_the_first_of_equal_values_gets_the_gradient():
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(pool_and_activate(x, (2, 2), 0.1).sum(), x)
    assert gradient.tolist() == [[[[1.0, 0.0], [0.0, 0.0]]]]
