"""The backbones, built from functional meta-layers (`meta_learning.networks.layers`,
`meta_learning.networks.norms`), by name.

Letters: B tasks, n images per task, C channels, H x W pixels, F filters, N way, D features.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_learning.networks.adapters.base import add_adapters
from meta_learning.networks.base import MetaNetwork, make_head
from meta_learning.networks.convolutional import Conv4, ConvolutionalBlock, ConvolutionalNetwork
from meta_learning.networks.foreign_checks import N_EXAMPLES, foreign_network
from meta_learning.networks.initial_weights import load_initial_weights
from meta_learning.networks.layers import (
    EpisodeHead,
    MetaConv2d,
    MetaLinear,
    Parameters,
    below,
)
from meta_learning.networks.norms.base import MetaNorm
from meta_learning.networks.norms.choice import NormChoice
from meta_learning.networks.passes import Pass
from meta_learning.networks.residual import RESIDUAL_NETWORKS, ResidualNetwork
from utils.config import ExperimentConfig
from utils.config.rules import feature_size
from utils.errors import ConfigError
from utils.files.pretrained import weights_file
from utils.registry import GIVEN_NETWORK, registered_backbone, user_code
from utils.registry.choices import GIVEN, choice, fact

# The paper's text says ReLU; the released code has had leaky ReLU again since January 2019.
LEAKY_RELU_SLOPE = 0.01
"""For negative values, as in the reference."""


class VGGReLUNormNetwork(ConvolutionalNetwork):
    """The reference's network: stages of 3x3 convolutions with norm, leaky ReLU and max-pooling or strides; a linear
    head.

    Parameter names are those of a plain `nn.Module`: block<i>.conv.weight, block<i>.norm.weight, head.weight, ...
    Convolutions and head start Xavier-uniform with zero biases.

    Args:
        image_shape: C, H, W of an image.
        n_way: N, outputs of the head; None: each episode brings its head.
        warp: side of the kernels of warp layers; 0: none.
    Source: Antoniou et al. 2019; released code, VGGReLUNormNetwork.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_way: int | None,
        *,
        n_filters: int = 64,
        n_stages: int = 4,
        blocks_per_stage: int = 1,
        padding: bool = True,
        max_pooling: bool = True,
        feature_scale: float = 0.0,
        norm: NormChoice | None = None,
        dropout: float = 0.0,
        warp: int = 0,
    ) -> None:
        super().__init__()
        norm = norm or NormChoice()
        channels, height, width = image_shape
        # As in the reference strides go with the mean over the last map, max-pooling with the flattened map.
        self.global_average, self.uses_dropout = not max_pooling, dropout > 0
        self.feature_scale = feature_scale
        self.stage_names = [f"block{i}" for i in range(n_stages * blocks_per_stage)]
        for index, name in enumerate(self.stage_names):
            ends_stage = (index + 1) % blocks_per_stage == 0
            stride = 2 if ends_stage and not max_pooling else 1
            # With a bias, as in the reference, although batch norm takes it out again and its gradient is zero.
            conv = MetaConv2d(channels, n_filters, 3, stride=stride, padding=int(padding))
            height, width = (
                feature_size(side, 1, 1, padding, False) if stride == 2 else side + 2 * int(padding) - 2
                for side in (height, width)
            )
            norm_layer = norm.build((n_filters, height, width))
            pools = ends_stage and max_pooling
            if pools:
                height, width = height // 2, width // 2
            block = ConvolutionalBlock(
                conv, norm_layer, pool=pools, negative_slope=LEAKY_RELU_SLOPE, dropout=dropout, index=index, warp=warp
            )
            self.add_module(name, block)
            channels = n_filters
        n_features = n_filters * (1 if self.global_average else height * width)
        self.head = make_head(n_features, n_way)


def build_vgg(
    config: ExperimentConfig, image_shape: tuple[int, int, int], n_way: int | None, norm: NormChoice
) -> MetaNetwork:
    """Build the reference's network from the keys of a config."""
    return VGGReLUNormNetwork(
        image_shape,
        n_way,
        n_filters=config.cnn_num_filters,
        n_stages=config.num_stages,
        blocks_per_stage=config.cnn_blocks_per_stage,
        padding=config.conv_padding,
        max_pooling=config.max_pooling,
        feature_scale=config.feature_scale,
        norm=norm,
        dropout=config.dropout_rate_value,
        warp=config.warp_kernel_size,
    )


def build_conv4(
    config: ExperimentConfig, image_shape: tuple[int, int, int], n_way: int | None, norm: NormChoice
) -> MetaNetwork:
    """Build conv4 from the keys of a config."""
    return Conv4(
        image_shape,
        n_way,
        n_filters=config.cnn_num_filters,
        feature_scale=config.feature_scale,
        norm=norm,
        dropout=config.dropout_rate_value,
        warp=config.warp_kernel_size,
    )


def build_residual(
    config: ExperimentConfig, image_shape: tuple[int, int, int], n_way: int | None, norm: NormChoice
) -> MetaNetwork:
    """Build the residual network that a config names."""
    return ResidualNetwork(
        image_shape, n_way, norm=norm, dropout=config.dropout_rate_value, **RESIDUAL_NETWORKS[config.backbone]
    )


class MultilayerPerceptron(MetaNetwork):
    """Fully connected layers with ReLU between them, for B tasks at once; images are taken as vectors.

    Parameter names: layer<i>.weight, layer<i>.bias, head.weight, head.bias.

    Args:
        image_shape: C, H, W of an image, or the sides of another array.
        n_outputs: of the head, classes or numbers to predict; None: each episode brings its head.
        hidden_sizes: units of each hidden layer.
    Source: Finn et al. 2017, section 5.1 (two layers of 40).
    """

    def __init__(self, image_shape: tuple[int, ...], n_outputs: int | None, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        size = math.prod(image_shape)
        self.stage_names = [f"layer{i}" for i in range(len(hidden_sizes))]
        for name, next_size in zip(self.stage_names, hidden_sizes, strict=True):
            self.add_module(name, MetaLinear(size, next_size))
            size = next_size
        self.head = EpisodeHead(size) if n_outputs is None else MetaLinear(size, n_outputs)

    def features(self, images: Tensor, params: Parameters | None = None, pass_: Pass | None = None) -> Tensor:
        """Return features (B, n, D) of images (B, n, C, H, W)."""
        x = images.flatten(2)
        for name in self.stage_names:
            x = F.relu(getattr(self, name)(x, below(params, name), x.shape[0]))
        return x


def build_mlp(
    config: ExperimentConfig, image_shape: tuple[int, int, int], n_way: int | None, norm: NormChoice
) -> MetaNetwork:
    """Build a multilayer perceptron from the keys of a config."""
    return MultilayerPerceptron(image_shape, n_way, config.mlp_hidden_sizes)


BACKBONES: dict[str, Callable[[ExperimentConfig, tuple[int, int, int], int | None, NormChoice], MetaNetwork]] = {
    "vgg": build_vgg,
    "conv4": build_conv4,
    "mlp": build_mlp,
    **dict.fromkeys(RESIDUAL_NETWORKS, build_residual),
}
"""Value of the key `backbone` -> function of (config, (C, H, W), N or None, norm) that builds it; `utils.registry`
has the names.
"""


NetworkFunction = Callable[[ExperimentConfig, tuple[int, int, int], int], nn.Module]
"""Of a config, (C, H, W) and N, as plugins register it: makes any module that ends with a linear layer."""


def build_foreign(
    config: ExperimentConfig, n_way: int | None, norm: NormChoice, given: nn.Module | NetworkFunction | None
) -> MetaNetwork:
    """Build a network of somebody else's: `given`, or the one that a plugin registered under the config's `backbone`.

    A module is copied and starts with the weights that it has; what a function draws, the config's seed decides.

    Raises:
        ConfigError: building it fails, it is nothing that the learner can use, or it is not there.
    """
    name, build = (config.backbone, registered_backbone(config.backbone)) if given is None else (GIVEN_NETWORK, given)
    who, inputs, of_inputs = f'backbone "{name}"', config.inputs, {}
    if inputs is not None:
        examples = torch.from_numpy(inputs.made_up(N_EXAMPLES))
        of_inputs = {"examples": examples, "take_apart": inputs.arguments}
    if build is None:
        raise ConfigError(
            f"{who} is a network that a Python program gave; give it again, as in FewShotClassifier(network=...)"
        )
    # The CPU's generator, where modules are built, is set back afterwards: nothing else draws other numbers for it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.initialisation_seed)
        with user_code(f"{who}: building it"):
            if isinstance(build, nn.Module):
                module = copy.deepcopy(build)
            else:
                # Where episodes bring their head, the module's own is left out afterwards; until then it needs some
                # size.
                module = build(config, config.network_shape, n_way or config.training_shapes[0].n_way)
        if isinstance(module, MetaNetwork):
            return module
        return foreign_network(  # which also draws the weights of lazy layers
            module, config.example_shape, n_way, norm, head_name=config.head_name, task_batching=config.task_batching,
            second_order=config.second_order, who=who, **of_inputs,
        )  # fmt: skip


def build_network(
    config: ExperimentConfig,
    given: nn.Module | NetworkFunction | None = None,
    *,
    norm_layer: Callable[..., MetaNorm] | None = None,
    with_head: bool | None = None,
) -> MetaNetwork:
    """Build and initialise the backbone of a config, or `given` in its place, on the CPU in float32.

    Args:
        norm_layer: what makes the norm layers; None: the config's.
        with_head: whether the head is the network's own, not each episode's; None: as the config says.
    """
    n_rows = max(config.number_of_training_steps_per_iter, 1) if config.per_step_bn_statistics else 1
    norm = NormChoice(
        config.norm_layer,
        n_rows,
        # As in the reference: weights and biases that the inner loop adapts have one row; statistics keep theirs.
        1 if config.enable_inner_loop_optimizable_bn_params else n_rows,
        config.learnable_bn_gamma,
        config.learnable_bn_beta,
        config.batch_norm_momentum,
        config.learnable_batch_norm_momentum,
        {} if norm_layer else choice("norm_layer", config.norm_layer).arguments(config),
        norm_layer,
    )
    n_outputs = config.num_regression_outputs if config.is_regression else config.training_shapes[0].n_way
    if with_head is None:
        with_head = not fact("head", config.head, "is_made_per_episode", True)
    n_way = n_outputs if with_head else None
    if given is None and config.backbone in BACKBONES:
        network = BACKBONES[config.backbone](config, config.example_shape, n_way, norm)
    else:
        network = build_foreign(config, n_way, norm, given)
    if config.inputs is not None:
        network.compared_as = "inputs" if config.inputs.are_numbers else ""
    # A generator of its own, on the CPU: neither earlier draws nor the kind of device change the initial weights.
    network.initialise(torch.Generator().manual_seed(config.initialisation_seed))
    if config.initial_weights:
        # After they were drawn: the file replaces the body alone, the head keeps what it has.
        load_initial_weights(network, weights_file(config.initial_weights))
    if config.adapter_kind != "none":
        add_adapters_of(config, network)
    if not isinstance(config.batch_norm_statistics, str):
        choose_statistics_per_stage(network, config.batch_norm_statistics)
    for key, given in (("norm_layer", norm_layer), ("adapter_kind", None)):
        name = GIVEN if given is not None else getattr(config, key)
        if name == GIVEN or (name != "none" and not choice(key, name).module):  # not ours: does a pass succeed?
            with user_code(f'{key} "{name}"'), torch.no_grad():
                shape = tuple(network.features(_examples(config)[None]).shape)
            if shape != (1, N_EXAMPLES, network.head.in_features):
                raise ConfigError(
                    f'{key} "{name}" makes features of {shape} from {N_EXAMPLES} examples of one task, not '
                    f"{(1, N_EXAMPLES, network.head.in_features)}; a layer's outputs keep their shape"
                )
    return network


def _examples(config: ExperimentConfig) -> Tensor:
    """Return made-up examples (n, ...) of what the network is to see."""
    if config.inputs is not None:
        return torch.from_numpy(config.inputs.made_up(N_EXAMPLES))
    return torch.zeros(N_EXAMPLES, *config.example_shape)


def add_adapters_of(config: ExperimentConfig, network: MetaNetwork) -> None:
    """Put the adapters of a config beside the layers of a body that is initialised, and freeze it where that is asked.

    Raises:
        ConfigError: see `add_adapters`.
    """
    if config.adapter_base == "frozen":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    chosen, examples = choice("adapter_kind", config.adapter_kind), _examples(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.initialisation_seed)
        add_adapters(network, chosen.name, chosen.make, config.adapter_targets, examples, **chosen.arguments(config))


def choose_statistics_per_stage(network: MetaNetwork, statistics: tuple[str, ...]) -> None:
    """Give the norm layers of each stage the batch-norm statistics listed for it.

    Raises:
        ConfigError: not one value per stage.
    """
    if len(statistics) != len(network.stage_names):
        raise ConfigError(
            f'"batch_norm_statistics" lists {len(statistics)} values, but the network has {len(network.stage_names)} '
            "stages "
            f"({', '.join(network.stage_names)}); give one for each"
        )
    of_stage = dict(zip(network.stage_names, statistics, strict=True))
    for name, layer in network.norm_layers().items():
        layer.own_statistics = next(value for stage, value in of_stage.items() if f"{name}.".startswith(f"{stage}."))
