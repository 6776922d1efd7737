"""Each functional layer is the torch layer, with its own parameters bit for bit and with passed-in ones task by
task.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meta_learning.networks.layers import MetaConv2d, MetaLinear
from meta_learning.networks.norms.batch_norm import MetaBatchNorm2d
from meta_learning.networks.norms.layer_norm import MetaLayerNorm
from meta_learning.networks.passes import Pass
from meta_learning.operations.hashed_noise import hashed_uniform
from meta_neural_network_architectures import VGGReLUNormNetwork, build_network
from tests.tools.learners import plain_network, random_episodes, small_config, small_learner
from utils.config.rules import feature_size


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_convolution_with_its_own_parameters_is_torchs_bit_for_bit():
    layer, plain = MetaConv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    images = torch.randn(4, 2, 6, 6)
    assert torch.equal(layer(images), plain(images))


def test_convolution_with_passed_parameters_is_one_convolution_per_task():
    layer = MetaConv2d(2, 3, 3, stride=2)
    weight, bias, images = torch.randn(5, 3, 2, 3, 3), torch.randn(5, 3), torch.randn(5, 4, 2, 7, 7)
    out = layer(images.transpose(0, 1).flatten(1, 2), {"weight": weight, "bias": bias}, 5)
    expected = torch.cat([F.conv2d(x, w, b, stride=2) for x, w, b in zip(images, weight, bias, strict=True)], dim=1)
    assert torch.allclose(out, expected, atol=1e-5)


def test_linear_is_torchs_per_task():
    layer = MetaLinear(7, 3)
    x, weight, bias = torch.randn(5, 4, 7), torch.randn(5, 3, 7), torch.randn(5, 3)
    expected = torch.stack([F.linear(*task) for task in zip(x, weight, bias, strict=True)])
    assert torch.allclose(layer(x, {"weight": weight, "bias": bias}, 5), expected, atol=1e-5)
    assert torch.allclose(layer(x, None, 5), nn.Linear.forward(layer, x), atol=1e-6)


def test_batch_norm_with_one_row_is_torchs_in_value_and_in_statistics():
    layer, plain = MetaBatchNorm2d(3, momentum=0.2), nn.BatchNorm2d(3, momentum=0.2)
    images, training = torch.randn(4, 3, 5, 5), Pass(is_training=True)
    assert torch.equal(layer(images, pass_=training, name="norm"), plain(images))
    means = training.record.mean_statistics()
    layer.update_running_statistics(means["norm.running_mean"], means["norm.running_var"])
    assert torch.allclose(layer.running_mean, plain.running_mean) and torch.allclose(
        layer.running_var, plain.running_var
    )
    plain.eval()
    assert torch.allclose(layer(images, pass_=Pass(statistics="running")), plain(images), atol=1e-6)


def test_batch_norm_normalises_each_task_by_its_own_images():
    layer = MetaBatchNorm2d(3)
    images = torch.randn(5, 4, 3, 6, 6) * torch.arange(1, 6).view(5, 1, 1, 1, 1)
    out = layer(images.transpose(0, 1).flatten(1, 2), n_tasks=5).unflatten(1, (5, 3)).transpose(0, 1)
    for task in range(5):
        assert torch.allclose(out[task], F.batch_norm(images[task], None, None, training=True), atol=1e-5)


def test_batch_norm_rows_follow_the_step_and_the_last_serves_later_steps():
    layer = MetaBatchNorm2d(2, n_rows=3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([[0.0, 0.0], [10.0, 10.0], [20.0, 20.0]]))
    images = torch.randn(4, 2, 5, 5)
    levels = [round(float(layer(images, pass_=Pass(step)).detach().mean())) for step in range(5)]
    assert levels == [0, 10, 20, 20, 20]


def test_running_statistics_start_at_mean_zero_and_variance_one():
    layer = MetaBatchNorm2d(2, n_rows=3)
    images = torch.randn(4, 2, 5, 5)
    assert torch.allclose(layer(images, pass_=Pass(statistics="running")), images / (1 + 1e-5) ** 0.5)


def test_layer_norm_is_torchs_and_keeps_its_weight_at_one():
    layer = MetaLayerNorm((3, 5, 5))
    images, bias = torch.randn(4, 2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    out = layer(images.flatten(1, 2), {"bias": bias}, 2).unflatten(1, (2, 3))
    assert torch.allclose(out, F.layer_norm(images, (3, 5, 5)) + bias, atol=1e-6)
    assert not layer.weight.requires_grad and layer.bias.requires_grad


def test_the_network_is_the_plain_module_of_the_same_parameter_names():
    learner = small_learner()
    images = random_episodes(small_config()).support_images
    expected = torch.stack([plain_network(learner)(task) for task in images])
    assert torch.allclose(learner.network(images), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(28, 28), (84, 84), (30, 45)])
@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("max_pooling", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
def test_every_shape_of_the_network_fits_its_head(shape, padding, max_pooling, blocks):
    if min(feature_size(side, 2, blocks, padding, max_pooling) for side in shape) < 1:
        pytest.skip("the image vanishes")
    network = VGGReLUNormNetwork(
        (1, *shape), 4, n_filters=2, n_stages=2, blocks_per_stage=blocks, padding=padding, max_pooling=max_pooling
    )
    assert network(torch.randn(2, 3, 1, *shape)).shape == (2, 3, 4)
    sides = [feature_size(side, 2, blocks, padding, max_pooling) for side in shape]
    assert network.head.in_features == (2 * sides[0] * sides[1] if max_pooling else 2)


def test_initial_weights_are_xavier_uniform_with_zero_biases():
    network = VGGReLUNormNetwork((1, 28, 28), 5)
    network.initialise(torch.Generator().manual_seed(0))
    bound = (6 / (64 * 9 + 64 * 9)) ** 0.5
    weight = network.block1.conv.weight.detach()
    assert weight.abs().max() <= bound and float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert network.block1.conv.bias.abs().max() == 0 == network.head.bias.abs().max()


def test_hashed_noise_is_uniform_and_a_pure_function_of_seed_stream_and_position():
    seeds = torch.tensor([3, 4, 3])
    noise = hashed_uniform(seeds, 7, (100, 100))
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1:2], hashed_uniform(seeds[1:2], 7, (100, 100)))
    assert not torch.equal(noise, hashed_uniform(seeds, 8, (100, 100)))
    assert float(noise.min()) >= 0 and float(noise.max()) < 1
    assert torch.histc(noise[0], 10, 0, 1).sub(1000).abs().max() < 150
    correlation = torch.corrcoef(torch.stack([noise[0].flatten(), noise[1].flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.05


def test_hashed_noise_is_splitmix64():
    """The same numbers from Python's integers, which do not wrap around by themselves."""

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    golden, seed, stream = 0x9E3779B97F4A7C15, 12345, 678
    key = mix((seed + stream * golden) % 2**64)
    expected = [(mix((key + i * golden) % 2**64) >> 40) / 2**24 for i in range(1, 6)]
    assert hashed_uniform(torch.tensor([seed]), stream, (5,))[0].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("backbone", ["vgg", "conv4"])
def test_scaled_features_have_mean_zero_and_that_deviation_and_are_else_the_same(backbone):
    plain, scaled = (
        build_network(small_config(backbone=backbone, feature_scale=scale)).double() for scale in (0.0, 3.0)
    )
    images = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = plain.features(images)
    expected = features - features.mean(-1, keepdim=True)
    expected = 3 * expected / torch.sqrt(expected.square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(scaled.features(images), expected, rtol=1e-9, atol=1e-9)
