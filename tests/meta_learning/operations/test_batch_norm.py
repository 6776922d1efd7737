"""Our batch norm is torch's, in value and in first and second derivatives; torch's own and finite differences check
it.
"""

import pytest
import torch
import torch.nn.functional as F

from meta_learning.operations.batch_norm import batch_norm


def torchs(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)


def ours(x, weight, bias):
    return batch_norm(x, weight, bias, 1e-5)[0]


def inputs(dtype=torch.float64, shape=(4, 3, 5, 6)):
    generator = torch.Generator().manual_seed(0)
    x = 2 + 3 * torch.randn(shape, generator=generator, dtype=dtype)
    weight, bias = torch.rand(2, shape[1], generator=generator, dtype=dtype) + 0.5
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def test_the_forward_pass_and_its_statistics_are_torchs_bit_for_bit():
    x, weight, bias = (value.detach() for value in inputs(torch.float32))
    out, mean, var = batch_norm(x, weight, bias, 1e-5)
    assert torch.equal(out, torchs(x, weight, bias))
    assert torch.allclose(mean, x.mean((0, 2, 3)), atol=1e-6) and torch.allclose(var, x.var((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)], ids=str)
def test_gradients_of_functions_of_gradients_are_torchs(used):
    """A function of some of the first gradients, differentiated once more with respect to x, weight, bias and the
    cotangent.
    """
    generator = torch.Generator().manual_seed(1)
    results = []
    for function in (ours, torchs):
        tensors = inputs()
        cotangent = torch.randn(4, 3, 5, 6, generator=generator.manual_seed(2), dtype=torch.float64, requires_grad=True)
        first = torch.autograd.grad(function(*tensors), tensors, cotangent, create_graph=True)
        weights = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in first]
        scalar = sum(((first[i] * weights[i]).sum() + (first[i] ** 2).sum()) for i in used)
        second = torch.autograd.grad(scalar, (*tensors, cotangent), allow_unused=True, materialize_grads=True)
        results.append((*first, *second))
    for mine, other in zip(*results, strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9 * float(other.detach().abs().max() + 1))


def test_second_derivatives_equal_finite_differences():
    tensors = inputs(shape=(2, 2, 2, 3))
    assert torch.autograd.gradcheck(ours, tensors)
    assert torch.autograd.gradgradcheck(ours, tensors)


def test_a_third_derivative_is_refused_instead_of_wrong():
    tensors = inputs()
    first = torch.autograd.grad(ours(*tensors).pow(2).sum(), tensors[0], create_graph=True)[0]
    second = torch.autograd.grad(first.pow(2).sum(), tensors[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (2, None, 1), (None, 0, None)], ids=str)
def test_inside_vmap_each_task_is_normalised_alone_and_twice_differentiable(in_dims):
    """Against torch's own, task by task: value, statistics, first gradient and a function of it differentiated
    again.
    """
    sides = (4, 3, 5, 6), (3,), (3,)
    generator = torch.Generator().manual_seed(3)
    tensors = []
    for side, dim in zip(sides, in_dims, strict=True):
        shape = side if dim is None else (*side[:dim], 2, *side[dim:])
        tensors.append((torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5).requires_grad_())

    def of_task(task):
        return [
            tensor if dim is None else tensor.select(dim, task) for tensor, dim in zip(tensors, in_dims, strict=True)
        ]

    out, mean, var = torch.vmap(lambda *task: batch_norm(*task, 1e-5), in_dims)(*tensors)
    expected = torch.stack([torchs(*of_task(task)) for task in range(2)])
    assert torch.allclose(out, expected, rtol=1e-12)
    for task in range(2):
        assert torch.allclose(mean[task], of_task(task)[0].mean((0, 2, 3))) and torch.allclose(
            var[task], of_task(task)[0].var((0, 2, 3))
        )
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    second = []
    for result in (out, expected):
        first = torch.autograd.grad((result * weights).sum(), tensors, create_graph=True)
        second.append([*first, *torch.autograd.grad(sum((g**2).sum() for g in first), tensors[:2])])
    for mine, other in zip(*second, strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9 * float(other.detach().abs().max() + 1))
