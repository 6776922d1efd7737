"""The first block on patches against the same block from convolution, norm, pooling and activation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from meta_learning.networks.convolutional import Conv4
from meta_learning.networks.first_block import ImagePatches, cut_patches
from meta_learning.networks.layers import MetaConv2d
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass, PassRecord
from meta_neural_network_architectures import VGGReLUNormNetwork

N_TASKS, N_SUPPORT, N_QUERY = 3, 4, 5
NETWORKS = {
    "the reference's": (
        (1, 10, 8),
        lambda shape: VGGReLUNormNetwork(shape, 3, n_filters=4, n_stages=2, norm=NormChoice(n_rows=2)),
    ),
    "odd sides, three colours": ((3, 9, 7), lambda shape: VGGReLUNormNetwork(shape, 3, n_filters=4, n_stages=1)),
    "no padding": ((1, 10, 8), lambda shape: VGGReLUNormNetwork(shape, 3, n_filters=4, n_stages=1, padding=False)),
    "strides": ((1, 10, 8), lambda shape: VGGReLUNormNetwork(shape, 3, n_filters=4, n_stages=2, max_pooling=False)),
    "two blocks in a stage": (
        (1, 10, 8),
        lambda shape: VGGReLUNormNetwork(shape, 3, n_filters=4, n_stages=1, blocks_per_stage=2),
    ),
    "learned momentum": (
        (1, 8, 8),
        lambda shape: VGGReLUNormNetwork(shape, 3, n_filters=4, n_stages=1, norm=NormChoice(learnable_momentum=True)),
    ),
    "conv4": ((1, 16, 16), lambda shape: Conv4(shape, 3, n_filters=4)),
    "conv4, one row of pixels": ((1, 1, 16), lambda shape: Conv4(shape, 3, n_filters=4)),
}


def shaken(network) -> torch.nn.Module:
    """The network in float64 with all parameters and running statistics away from their symmetric start; some
    weights are negative.
    """
    generator = torch.Generator().manual_seed(3)
    network.initialise(generator)
    network = network.double()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
            elif tensor.dim() and not name.endswith("conv.weight"):
                tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return network


def drawn_images(shape: tuple[int, int, int], n_images: int, seed: int) -> Tensor:
    """Random images, a third of the pixels zero, so that some patches are alike."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((N_TASKS, n_images, *shape), generator=generator, dtype=torch.float64)
    return values * (torch.rand(values.shape, generator=generator) > 0.33)


def everything(network, pictures, params: dict[str, Tensor], pass_: Pass) -> list[Tensor]:
    """Features, inner gradients and a second-order gradient with respect to all parameters, and what the norm layers
    saw.
    """
    pass_ = replace(pass_, record=PassRecord())
    features = network.features(pictures, params, pass_)
    if pass_.n_support:
        features = features[:, pass_.n_support :]
    weights = torch.linspace(-1, 1, features.shape[-1], dtype=torch.float64)
    loss = torch.sin(features * weights).mean()
    names = list(params)
    inner = torch.autograd.grad(loss, [params[name] for name in names], create_graph=True)
    adapted = {name: params[name] - 0.1 * gradient for name, gradient in zip(names, inner, strict=True)}
    after = network.features(pictures, adapted, replace(pass_, is_training=False))
    learned = [*params.values(), *(parameter for parameter in network.parameters() if parameter.requires_grad)]
    outer = torch.autograd.grad(torch.cos(after * weights).mean(), learned, allow_unused=True, materialize_grads=True)
    seen = [value for rows in pass_.record.seen.values() for passes in rows for value in passes]
    return [features, *inner, *outer, *seen, *(value for pair in pass_.record.moving.values() for value in pair)]


PASSES = {
    "training": Pass(is_training=True),
    "training, later step": Pass(is_training=True, step=1),
    "evaluation": Pass(),
    "running": Pass(statistics="running"),
    "episodic support": Pass(statistics="episodic", is_training=True),
    "episodic query before any support": Pass(statistics="episodic", is_query=True),
    "query normalised with support": Pass(statistics="support", is_query=True, n_support=N_SUPPORT, is_training=True),
    "support images along for another layer": Pass(
        statistics="transductive", is_query=True, n_support=N_SUPPORT, is_training=True
    ),
}


@pytest.mark.parametrize("pass_", PASSES.values(), ids=PASSES.keys())
@pytest.mark.parametrize(("shape", "build"), NETWORKS.values(), ids=NETWORKS.keys())
def test_outputs_gradients_and_statistics_equal_those_of_the_layers_one_by_one(shape, build, pass_):
    network = shaken(build(shape))
    support, query = drawn_images(shape, N_SUPPORT, 0), drawn_images(shape, N_QUERY, 1)
    plain = torch.cat([support, query], dim=1) if pass_.n_support else support
    prepared = (
        network.prepare(support).followed_by(network.prepare(query)) if pass_.n_support else network.prepare(support)
    )
    assert isinstance(prepared, ImagePatches)
    params = {
        name: parameter.detach()
        * torch.linspace(0.9, 1.1, N_TASKS, dtype=torch.float64).view(-1, *[1] * parameter.dim())
        for name, parameter in network.named_parameters()
        if name.endswith(("conv.weight", "conv.bias"))
    }
    params = {name: value.requires_grad_() for name, value in params.items()}
    ours, theirs = everything(network, prepared, params, pass_), everything(network, plain, params, pass_)
    assert len(ours) == len(theirs)
    scale = float(torch.cat([value.detach().flatten() for value in theirs]).norm())
    for one, other in zip(ours, theirs, strict=True):
        difference = float((one - other).detach().norm())
        assert difference <= 1e-9 * max(float(other.detach().norm()), 1e-6 * scale)


def test_mean_and_covariance_are_those_of_the_patches_of_all_pixels():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 1, 5, 5, generator=generator, dtype=torch.float64)
    patches = cut_patches(pictures, MetaConv2d(1, 2, 3, padding=1), (2, 2))
    by_hand = torch.stack([
        torch.nn.functional.pad(pictures[:, :, 0], (1, 1, 1, 1))[:, :, top : top + 5, left : left + 5].flatten(1)
        for top in range(3) for left in range(3)
    ], dim=1)  # (B, K, n*H*W)  # fmt: skip
    torch.testing.assert_close(patches.sets[0].moments[..., -1], by_hand.mean(2))
    for task in range(2):
        torch.testing.assert_close(patches.sets[0].moments[..., :-1][task], torch.cov(by_hand[task], correction=0))
    assert patches.sides == (2, 2)
    assert patches.sets[0].n_patches == 75


def test_blank_images_that_a_filter_does_not_see_have_no_variance_below_zero():
    """A filter whose weights sum to zero, without padding: the map is zero, and rounding alone decides its variance."""
    network = VGGReLUNormNetwork((1, 10, 8), 3, n_filters=64, n_stages=1, padding=False)
    generator = torch.Generator().manual_seed(0)
    weight = 100 * torch.randn(64, 1, 3, 3, generator=generator)
    with torch.no_grad():
        network.block0.conv.weight.copy_(weight - weight.mean(dim=(1, 2, 3), keepdim=True))
    pictures = torch.rand(2, N_SUPPORT, 1, 1, 1, generator=generator).expand(-1, -1, -1, 10, 8)
    assert torch.isfinite(network.features(network.prepare(pictures))).all()


def test_what_is_normalised_with_support_images_does_not_depend_on_the_order_of_queries_by_a_bit():
    network = shaken(VGGReLUNormNetwork((1, 8, 8), 3, n_filters=8, n_stages=1)).float()
    support, query = drawn_images((1, 8, 8), N_SUPPORT, 0).float(), drawn_images((1, 8, 8), N_QUERY, 1).float()
    pass_ = Pass(statistics="support", is_query=True, n_support=N_SUPPORT)

    def features(queries):
        return network.features(network.prepare(support).followed_by(network.prepare(queries)), None, pass_)[
            :, N_SUPPORT:
        ]

    assert torch.equal(features(query).flip(1), features(query.flip(1)))


def test_images_of_many_channels_and_other_norms_go_the_general_way():
    for network, channels in (
        (VGGReLUNormNetwork((4, 8, 8), 3, n_filters=4, n_stages=1), 4),
        (VGGReLUNormNetwork((1, 8, 8), 3, n_filters=4, n_stages=1, norm=NormChoice("layer_norm")), 1),
    ):
        pictures = torch.zeros(2, 3, channels, 8, 8)
        assert network.prepare(pictures) is pictures
