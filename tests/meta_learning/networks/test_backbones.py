"""Every backbone is the plain module of the same names, for a meta-batch and in its meta-gradient; torchvision's are
bit for bit.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meta_learning.networks.convolutional import Conv4
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass
from meta_learning.networks.residual import RESIDUAL_NETWORKS, ResidualNetwork
from meta_neural_network_architectures import BACKBONES, build_network
from tests.tools.gate import few_of
from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from utils.config import check_config
from utils.errors import ConfigError
from utils.registry import BUILT_IN_BACKBONES


class PlainConv4(nn.Module):
    """conv4 as anybody would write it."""

    def __init__(self, channels: int, filters: int, n_features: int, n_way: int) -> None:
        super().__init__()
        for index in range(4):
            block = nn.Module()
            block.conv, block.norm = (
                nn.Conv2d(filters if index else channels, filters, 3, padding=1),
                nn.BatchNorm2d(filters),
            )
            self.add_module(f"block{index}", block)
        self.fc = nn.Linear(n_features, n_way)

    def forward(self, x):
        """Return logits."""
        for index in range(4):
            block = getattr(self, f"block{index}")
            x = F.relu(block.norm(block.conv(x)))
            x = F.max_pool2d(x, [min(2, side) for side in x.shape[2:]])
        return self.fc(x.flatten(1))


class PlainBlock(nn.Module):
    """A block of ResNet-12 (three convolutions) or ResNet-10 (two)."""

    def __init__(self, channels: int, filters: int, depth: int, stride: int, projects: bool) -> None:
        super().__init__()
        self.depth = depth
        for index in range(1, depth + 1):
            conv = nn.Conv2d(
                channels if index == 1 else filters, filters, 3, stride if index == 1 else 1, 1, bias=False
            )
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", nn.BatchNorm2d(filters))
        if projects:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )
        self.projects = projects

    def forward(self, x):
        """Return the block's output."""
        act = (lambda y: F.leaky_relu(y, 0.1)) if self.depth == 3 else F.relu
        out = x
        for index in range(1, self.depth + 1):
            out = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(out))
            out = act(out) if index < self.depth else out
        out = act(out + (self.downsample(x) if self.projects else x))
        return F.max_pool2d(out, [min(2, side) for side in out.shape[2:]]) if self.depth == 3 else out


class PlainResNet(nn.Module):
    """ResNet-10 (depth 2) and -12 (depth 3) as anybody would write them."""

    def __init__(self, channels: int, widths: tuple[int, ...], depth: int, n_way: int) -> None:
        super().__init__()
        self.stem = depth == 2
        if self.stem:
            self.conv1, self.bn1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
            channels = 64
        for index, width in enumerate(widths):
            block = PlainBlock(
                channels, width, depth, 2 if index and depth == 2 else 1, depth == 3 or index > 0 or channels != width
            )
            self.add_module(f"layer{index + 1}", nn.Sequential(block))
            channels = width
        self.fc = nn.Linear(channels, n_way)

    def forward(self, x):
        """Return logits."""
        x = F.relu(self.bn1(self.conv1(x))) if self.stem else x
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        return self.fc(x.mean((2, 3)))


def torchvision_resnet(**arguments):
    resnet = pytest.importorskip("torchvision.models.resnet")
    block = resnet.Bottleneck if arguments.pop("bottleneck", False) else resnet.BasicBlock
    return resnet.ResNet(block, [1, 1, 1, 1], num_classes=3, width_per_group=64, **arguments)


WIDTHS = (4, 5, 6, 7)
CASES = {
    "conv4": lambda: (Conv4((1, 17, 12), 3, n_filters=3), PlainConv4(1, 3, 3, 3)),
    "resnet12": lambda: (
        ResidualNetwork((1, 12, 17), 3, block="pooled", stem="none", widths=WIDTHS),
        PlainResNet(1, WIDTHS, 3, 3),
    ),
    "resnet10": lambda: (ResidualNetwork((1, 12, 17), 3, stem="3x3", widths=WIDTHS), PlainResNet(1, WIDTHS, 2, 3)),
}


def pair(name: str):
    """One of ours and the plain module with its weights, in float64, off their symmetric start."""
    torch.manual_seed(0)
    ours, plain = (network.double() for network in CASES[name]())
    ours.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    prefixes = {"head.": "fc."} if "head.weight" in ours.state_dict() else {}
    state = {
        next((new + key[len(old) :] for old, new in prefixes.items() if key.startswith(old)), key): value
        for key, value in ours.state_dict().items()
    }
    counts = {key: value for key, value in plain.state_dict().items() if key.endswith("num_batches_tracked")}
    plain.load_state_dict(state | counts, strict=True)
    return ours, plain


def images_of(ours: nn.Module, n_tasks: int = 2, n: int = 4) -> torch.Tensor:
    """Random images; no side shrinks to one pixel before the last block."""
    return torch.randn(n_tasks, n, 1, *((17, 12) if isinstance(ours, Conv4) else (12, 17)), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_a_backbone_computes_each_task_as_the_plain_module_does(name):
    ours, plain = pair(name)
    images = images_of(ours)
    params = {
        key: value.detach() + 0.1 * torch.randn(2, *value.shape, dtype=value.dtype)
        for key, value in ours.named_parameters()
        if "bn" not in key
    }
    plain_names = {key: key.replace("head.", "fc.") for key in params}
    for pass_, training in ((Pass(statistics="running"), False), (Pass(), True)):
        plain.train(training)
        expected = [
            torch.func.functional_call(
                plain, {plain_names[key]: value[task] for key, value in params.items()}, (images[task],)
            )
            for task in range(2)
        ]
        assert torch.allclose(ours(images, params, pass_), torch.stack(expected), rtol=1e-9, atol=1e-9)


def worst_meta_gradient_difference(ours, plain, support, query, rate):
    """One inner step on all parameters of 3-way tasks, then the gradient of the query loss with respect to the
    start: both ways, compared.
    """
    n_tasks = len(support)
    labels = [torch.arange(3).repeat_interleave(images.shape[1] // 3) for images in (support, query)]

    def outer_gradient(own, losses):
        params = {key: value.detach().clone().requires_grad_() for key, value in own.named_parameters()}
        values = torch.autograd.grad(losses(params), list(params.values()))
        return {key.replace("head.", "fc."): value for key, value in zip(params, values, strict=True)}

    def of_ours(params):
        fast = {key: value.expand(n_tasks, *value.shape) for key, value in params.items()}
        loss = F.cross_entropy(ours(support, fast).flatten(0, 1), labels[0].repeat(n_tasks), reduction="sum") / len(
            labels[0]
        )
        gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {key: value - rate * gradient for (key, value), gradient in zip(fast.items(), gradients, strict=True)}
        return F.cross_entropy(ours(query, fast).flatten(0, 1), labels[1].repeat(n_tasks))

    def of_plain(params):
        losses = []
        for task in range(n_tasks):
            loss = F.cross_entropy(torch.func.functional_call(plain, params, (support[task],)), labels[0])
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            fast = {
                key: value - rate * gradient for (key, value), gradient in zip(params.items(), gradients, strict=True)
            }
            losses.append(F.cross_entropy(torch.func.functional_call(plain, fast, (query[task],)), labels[1]))
        return torch.stack(losses).mean()

    return worst_difference(outer_gradient(ours, of_ours), outer_gradient(plain, of_plain))


@pytest.mark.parametrize("name", CASES)
def test_a_backbones_meta_gradient_is_that_of_the_plain_module_task_by_task(name):
    ours, plain = pair(name)
    assert worst_meta_gradient_difference(ours, plain, images_of(ours, n=6), images_of(ours, n=3), rate=0.1) < 1e-9


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("resnet18", 1e-3),
        pytest.param("resnet34", 1e-3, marks=pytest.mark.full),
        pytest.param("resnet50", 1e-5, marks=pytest.mark.full),
    ],
)
def test_a_torchvision_resnets_meta_gradient_is_that_of_torchvisions_own_module(name, rate):
    """The step is small: a deep random network that has gone far multiplies rounding errors a millionfold."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    config = check_config(
        {"experiment_name": "t", "backbone": name, "image_channels": 3, "num_classes_per_set": 3}, "test"
    )
    ours, plain = (
        BACKBONES[name](config, (3, 32, 32), 3, NormChoice()).double(),
        getattr(models, name)(num_classes=3).double(),
    )
    ours.load_state_dict(plain.state_dict(), strict=True)
    support, query = (torch.randn(1, 6, 3, 32, 32, dtype=torch.float64) for _ in range(2))
    assert worst_meta_gradient_difference(ours, plain, support, query, rate) < 1e-9


RESNETS = list(itertools.product((32, 40), ("resnet18", "resnet34", "resnet50")))


@pytest.mark.parametrize(
    "case", few_of(RESNETS, (40, "resnet18"), (32, "resnet50")), ids=lambda case: f"{case[0]}-{case[1]}"
)
def test_a_torchvision_resnet_loads_strictly_and_computes_the_same_bits(case):
    side, name = case
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    plain = getattr(models, name)(num_classes=4)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    config = check_config(
        {"experiment_name": "t", "backbone": name, "image_channels": 3, "num_classes_per_set": 4}, "test"
    )
    ours = BACKBONES[name](config, (3, side, side), 4, NormChoice())
    ours.load_state_dict(plain.state_dict(), strict=True)
    counts = {key: value for key, value in plain.state_dict().items() if key.endswith("num_batches_tracked")}
    plain.load_state_dict(ours.state_dict() | counts, strict=True)
    images = torch.randn(3, 3, side, side)
    images_like_ours = images.contiguous(memory_format=torch.channels_last)  # the format decides the last bits
    with torch.no_grad():
        assert torch.equal(ours(images[None], None, Pass(statistics="running"))[0], plain.eval()(images_like_ours))
        training = Pass(is_training=True)
        assert torch.equal(ours(images[None], None, training)[0], plain.train()(images_like_ours))
    for key, value in training.record.mean_statistics().items():
        layer = ours.get_submodule(key.rsplit(".", 1)[0])
        buffer = getattr(layer, key.rsplit(".", 1)[1]).clone().lerp_(value, layer.momentum)
        assert torch.allclose(buffer, plain.state_dict()[key], rtol=1e-5, atol=1e-6), key


def test_the_weights_start_like_torchvisions():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    plain = models.resnet18(num_classes=5)
    config = check_config({"experiment_name": "t", "backbone": "resnet18", "image_channels": 3}, "test")
    ours = build_network(config).state_dict()
    for key, value in plain.state_dict().items():
        if value.dim() == 4:
            assert float(ours[key].std()) == pytest.approx(float(value.std()), rel=0.1), key
        elif key.startswith("fc"):
            assert 0.9 / 512**0.5 < float(ours["fc.weight"].abs().max()) <= 1 / 512**0.5
        elif not key.endswith("num_batches_tracked"):
            assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("name", sorted(BUILT_IN_BACKBONES.keys() - {"mlp"}))
def test_a_named_backbone_has_the_shape_that_its_name_says(name):
    """Parameters of a 5-way network on 3 x 84 x 84 images, head included; ResNets as in torchvision and the
    literature.
    """
    models = pytest.importorskip("torchvision.models")
    plain = {
        "vgg": lambda: PlainConv4(3, 64, 1600, 5),
        "conv4": lambda: PlainConv4(3, 64, 1600, 5),
        "resnet10": lambda: PlainResNet(3, (64, 128, 256, 512), 2, 5),
        "resnet10_wide": lambda: PlainResNet(3, (64, 160, 320, 640), 2, 5),
        "resnet12": lambda: PlainResNet(3, (64, 128, 256, 512), 3, 5),
        "resnet12_wide": lambda: PlainResNet(3, (64, 160, 320, 640), 3, 5),
    }
    expected = plain[name]() if name in plain else getattr(models, name)(num_classes=5)
    config = check_config(
        {"experiment_name": "t", "backbone": name, "image_channels": 3, "image_height": 84, "image_width": 84}, "test"
    )
    network = BACKBONES[name](config, (3, 84, 84), 5, NormChoice())
    assert sum(value.numel() for value in network.parameters()) == sum(value.numel() for value in expected.parameters())
    assert set(network.stage_names) == {layer.split(".")[0] for layer in network.norm_layers()}


def test_the_names_that_configs_may_use_are_those_that_can_be_built():
    assert list(BACKBONES) == list(BUILT_IN_BACKBONES)


OF_SIDE = {
    block: lambda side, block=block, stem=stem: ResidualNetwork(
        (1, side, side), 2, block=block, stem=stem, widths=(2, 2, 2, 2)
    )
    for block, stem in (("basic", "torchvision"), ("pooled", "none"), ("bottleneck", "3x3"))
}


@pytest.mark.parametrize("side", [1, 2, 3, 15, 28])
def test_no_image_is_too_small_for_conv4_and_the_residual_networks(side):
    for network in (Conv4((1, side, side), 2, n_filters=2), *(make(side) for make in OF_SIDE.values())):
        assert network(torch.randn(1, 4, 1, side, side)).shape == (1, 4, 2)


@pytest.mark.parametrize("backbone", few_of(["conv4", "resnet12", "resnet18"], "conv4", "resnet12"))
def test_a_network_of_another_norm_layer_learns(backbone, monkeypatch):
    if backbone != "conv4":
        monkeypatch.setitem(RESIDUAL_NETWORKS[backbone], "widths", (8, 8, 8, 8))
    for norm in ("group_norm", "layer_norm", "task_norm"):
        learner = small_learner(
            backbone=backbone,
            cnn_num_filters=8,
            num_stages=4,
            norm_layer=norm,
            norm_groups=4,
            image_height=8,
            image_width=8,
        )
        episodes = random_episodes(small_config(image_height=8, image_width=8, num_stages=1))
        gradients = learner.meta_gradients(episodes, 0).gradients
        assert (
            all(torch.isfinite(value).all() for value in gradients.values()) and gradients["network.head.weight"].any()
        )


def test_dropout_after_each_stage_follows_from_the_episode():
    networks = Conv4((1, 16, 16), 2, n_filters=4, dropout=0.5), OF_SIDE["pooled"](16)
    networks[1].dropout = 0.5
    for network in networks:
        images = torch.randn(2, 4, 1, 16, 16)
        first, again, other = (
            network(images, None, Pass(dropout_seeds=torch.tensor(seeds))) for seeds in ([3, 4], [3, 4], [3, 5])
        )
        assert torch.equal(first, again) and torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
        assert not torch.equal(first, network(images))


def test_statistics_are_chosen_per_stage():
    config = check_config(
        {
            "experiment_name": "t",
            "backbone": "resnet18",
            "batch_norm_statistics": ["transductive", "transductive", "support", "episodic", "running"],
        },
        "test",
    )
    chosen = {name: layer.own_statistics for name, layer in build_network(config).norm_layers().items()}
    assert chosen["bn1"] == chosen["layer1.0.bn1"] == "transductive" and chosen["layer2.0.downsample.1"] == "support"
    assert chosen["layer3.1.bn2"] == "episodic" and chosen["layer4.0.bn1"] == "running"
    with pytest.raises(
        ConfigError, match=r"lists 1 values, but the network has 5 stages \(bn1, layer1, layer2, layer3, layer4\)"
    ):
        build_network(config.model_copy(update={"batch_norm_statistics": ("support",)}))


def test_a_group_norm_that_does_not_fit_is_refused():
    with pytest.raises(
        ConfigError, match='"norm_groups" 7 does not divide the 64 filters of a layer; choose a divisor'
    ):
        build_network(
            check_config(
                {"experiment_name": "t", "backbone": "resnet12", "norm_layer": "group_norm", "norm_groups": 7}, "test"
            )
        )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet21", 'did you mean "resnet1'),
        ("resnet-18", 'did you mean "resnet18"?'),
        ("transformer", "must be one of vgg, conv4, "),
        ("mine", "A network of your own comes with --plugin FILE.py on the command line"),
    ],
)
def test_an_unknown_backbone_names_the_known_ones(name, text):
    with pytest.raises(ConfigError) as error:
        check_config({"experiment_name": "t", "backbone": name}, "my.json")
    assert str(error.value).startswith(f'my.json: "backbone" is "{name}", but must be one of') and text in str(
        error.value
    )


def test_keys_of_another_backbone_are_noted():
    config = check_config(
        {"experiment_name": "t", "backbone": "resnet12", "cnn_num_filters": 48, "max_pooling": False}, "test"
    )
    assert any(
        '"cnn_num_filters" 48, "max_pooling" false without effect: "backbone" resnet12' in note for note in config.notes
    )
    assert not any(
        "without effect" in note
        for note in check_config({"experiment_name": "t", "backbone": "conv4", "cnn_num_filters": 32}, "test").notes
    )
