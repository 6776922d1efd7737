"""Maxima over pooling windows of mapped patches, in both forms, against torch's operations one by one."""

import pytest
import torch
import torch.nn.functional as F

from meta_learning.operations.window_maxima import _AllPixels, _PixelByPixel

B, N_IMAGES, PIXELS, N_WINDOWS, K, FILTERS = 2, 3, 4, 5, 6, 7
FORMS = pytest.mark.parametrize("form", [_AllPixels, _PixelByPixel])


def plain(linear: torch.Tensor, windows: torch.Tensor, negative_slope: float) -> torch.Tensor:
    values = torch.einsum("nbqlk,bfk->nbqlf", windows.unflatten(0, (N_IMAGES, B)), linear)
    return F.leaky_relu(values.amax(2), negative_slope)


def drawn(pixels: int = PIXELS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn(N_IMAGES * B, pixels, N_WINDOWS, K, generator=generator, dtype=torch.float64)
    return torch.randn(B, FILTERS, K, generator=generator, dtype=torch.float64, requires_grad=True), windows


@FORMS
@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("pixels", [1, PIXELS])
def test_outputs_gradients_and_second_order_gradients_are_those_of_the_operations_one_by_one(form, slope, pixels):
    linear, windows = drawn(pixels)
    found = []
    for function in (form.apply, plain):
        out = function(linear, windows, slope)
        (inner,) = torch.autograd.grad(torch.sin(out).sum(), linear, create_graph=True)
        (outer,) = torch.autograd.grad(torch.cos(function(linear - 0.1 * inner, windows, slope)).sum(), linear)
        found.append((out, inner, outer))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@FORMS
def test_each_derivative_is_that_of_finite_differences(form):
    linear, windows = drawn()
    assert torch.autograd.gradcheck(lambda linear: form.apply(linear, windows, 0.1), linear)
    assert torch.autograd.gradgradcheck(lambda linear: form.apply(linear, windows, 0.1), linear)


@FORMS
def test_of_equal_values_the_first_one_gets_the_gradient(form):
    """Two pixels of a window map to the same value; the patches differ where the map does not look."""
    windows = torch.tensor([[[[1.0, 5.0]], [[1.0, 7.0]]]], dtype=torch.float64)  # one image, two pixels, one window
    linear = torch.tensor([[[2.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(form.apply(linear, windows, 0.1).sum(), linear)
    assert gradient.tolist() == [[[1.0, 5.0]]]
