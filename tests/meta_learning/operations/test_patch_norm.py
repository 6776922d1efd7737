"""Batch norm from the moments of patches: against batch norm of the mapped patches themselves, and finite
differences.
"""

import torch
import torch.nn.functional as F

from meta_learning.operations.patch_norm import normalised_map

B, FILTERS, K, N_PATCHES, EPS = 3, 4, 5, 17, 1e-3


def drawn(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Patches (B, N, K), and weight, bias, gamma and beta that want gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return normal(B, N_PATCHES, K) + 0.7, *(
        value.requires_grad_() for value in (normal(B, FILTERS, K), *(normal(B, FILTERS) for _ in range(3)))
    )


def moments_of(patches: torch.Tensor) -> torch.Tensor:
    mean = patches.mean(1, keepdim=True)
    centred = patches - mean
    return torch.cat([centred.transpose(1, 2) @ centred / N_PATCHES, mean.transpose(1, 2)], dim=2)


def plain(
    patches: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """torch's own batch norm of the mapped patches: (B, N, F)."""
    mapped = patches @ weight.transpose(1, 2) + bias.unsqueeze(1)
    normed = F.batch_norm(
        mapped.transpose(0, 1).flatten(1), None, None, gamma.flatten(), beta.flatten(), training=True, eps=EPS
    )
    return normed.unflatten(1, (B, FILTERS)).transpose(0, 1)


def ours(patches: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    linear, _, _ = normalised_map(*parameters, moments_of(patches), EPS)
    return patches @ linear[..., :-1].transpose(1, 2) + linear[..., -1].unsqueeze(1)


def test_outputs_gradients_and_second_order_gradients_are_those_of_batch_norm():
    patches, *parameters = drawn()
    weights = torch.linspace(-1, 1, B * N_PATCHES * FILTERS, dtype=torch.float64).view(B, N_PATCHES, FILTERS)
    found = []
    for norm in (ours, plain):
        out = norm(patches, *parameters)
        inner = torch.autograd.grad((torch.sin(out) * weights).sum(), parameters, create_graph=True)
        adapted = [value - 0.1 * slope for value, slope in zip(parameters, inner, strict=True)]
        outer = torch.autograd.grad((torch.cos(norm(patches, *adapted)) * weights).sum(), parameters)
        found.append([out, *inner, *outer])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_each_derivative_of_each_input_is_that_of_finite_differences():
    patches, *parameters = drawn(1)
    moments = moments_of(patches)

    def linear(*values: torch.Tensor) -> torch.Tensor:
        return normalised_map(*values, moments, EPS)[0]

    assert torch.autograd.gradcheck(linear, parameters)
    assert torch.autograd.gradgradcheck(linear, parameters)


def test_a_derivative_that_nobody_asks_for_is_left_out():
    """Only the weight is adapted, or only gamma."""
    patches, *parameters = drawn(2)
    for index in (0, 2):
        seen = []
        for norm in (ours, plain):
            values = [value if place == index else value.detach() for place, value in enumerate(parameters)]
            (slope,) = torch.autograd.grad(torch.sin(norm(patches, *values)).sum(), values[index], create_graph=True)
            seen.append(torch.autograd.grad(slope.square().sum(), values[index])[0])
        torch.testing.assert_close(*seen, rtol=1e-9, atol=1e-9)


def test_the_statistics_are_those_of_the_mapped_patches():
    patches, weight, bias, gamma, beta = drawn(3)
    _, mean, var = normalised_map(weight, bias, gamma, beta, moments_of(patches), EPS)
    mapped = patches @ weight.transpose(1, 2) + bias.unsqueeze(1)
    torch.testing.assert_close(mean, mapped.mean(1))
    torch.testing.assert_close(var, mapped.var(1, correction=0))
    assert not mean.requires_grad and not var.requires_grad
