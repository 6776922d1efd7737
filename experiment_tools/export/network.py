"""The backbones as plain PyTorch: images (n, C, H, W), or arrays, in, logits (n, N) out. An exported folder has this
file as network.py.

    from network import load_network
    network = load_network("the_exported_folder")

Needs torch, and safetensors to read the weights. Without meta-learning's task axis, inner steps and dropout: a
network that has been adapted, or one to adapt. `architecture` is what config.json says under that name.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Architecture = dict[str, Any]


def load_network(folder: str | Path) -> nn.Module:
    """Build the network of an exported folder with its weights, ready to classify."""
    from safetensors.torch import load_file

    folder = Path(folder)
    network = build_network(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"])
    tensors = load_file(folder / "model.safetensors")
    network.to(next(value.dtype for value in tensors.values() if value.is_floating_point())).load_state_dict(tensors)
    return network.eval()


def build_network(architecture: Architecture) -> nn.Module:
    """Build a network with the weights that torch draws; a state dict of the exported folder loads into it."""
    kinds = {"convolutional": ConvolutionalNetwork, "residual": ResidualNetwork, "perceptron": MultilayerPerceptron}
    network = kinds[architecture["kind"]](architecture)
    add_parameters(network, architecture.get("added", {}))
    return network


def add_parameters(network: nn.Module, shapes: dict[str, list[int]]) -> None:
    """Give layers a bias, or a weight, that they were built without: it holds an adapter's shift, or scale."""
    for name, shape in shapes.items():
        layer, _, which = name.rpartition(".")
        network.get_submodule(layer).register_parameter(which, nn.Parameter(torch.zeros(shape)))


class TaskNorm(nn.Module):
    """TaskNorm-I (Bronskill et al. 2020): statistics between those of a context and those of each image.

    The context is the batch, or the support set of the task, whose statistics are then stored.
    """

    def __init__(self, n_filters: int, stored: bool, eps: float) -> None:
        super().__init__()
        self.stored, self.eps = stored, eps
        self.weight, self.bias = nn.Parameter(torch.ones(n_filters)), nn.Parameter(torch.zeros(n_filters))
        self.alpha_scale, self.alpha_offset = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))
        if stored:
            self.register_buffer("context_mean", torch.zeros(n_filters))
            self.register_buffer("context_var", torch.ones(n_filters))
            self.register_buffer("context_size", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (n, F, H, W)."""
        if self.stored:
            context_mean, context_var, size = self.context_mean, self.context_var, self.context_size
        else:
            context_var, context_mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            size = x.shape[0]
        alpha = torch.sigmoid(self.alpha_scale * size + self.alpha_offset)
        image_var, image_mean = torch.var_mean(x, dim=(2, 3), correction=0)
        mean = alpha * context_mean + (1 - alpha) * image_mean
        var = alpha * (context_var + (context_mean - mean) ** 2) + (1 - alpha) * (image_var + (image_mean - mean) ** 2)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return x * scale[..., None, None] + (self.bias - mean * scale)[..., None, None]


def build_norm(architecture: Architecture, name: str) -> nn.Module:
    """Build the norm layer called `name`."""
    norm = architecture["norms"][name]
    if norm["kind"] == "batch_norm":
        return nn.BatchNorm2d(
            norm["n_filters"], eps=norm["eps"], track_running_stats=norm["stored"]
        )  # not stored: those of the batch
    if norm["kind"] == "layer_norm":
        return nn.LayerNorm(norm["shape"], eps=norm["eps"])
    if norm["kind"] == "group_norm":
        return nn.GroupNorm(norm["n_groups"], norm["n_filters"], eps=norm["eps"])
    return TaskNorm(norm["n_filters"], norm["stored"], norm["eps"])


def build_head(architecture: Architecture) -> nn.Module:
    """Build the linear head; without outputs the network ends with its features."""
    n_outputs = architecture["n_outputs"]
    return nn.Identity() if n_outputs is None else nn.Linear(architecture["n_features"], n_outputs)


def pool(x: Tensor) -> Tensor:
    """Apply max-pooling over 2 x 2 pixels; a side of one pixel stays as it is."""
    return F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))


class ConvolutionalBlock(nn.Module):
    """3x3 convolution, warp layer where there are any, norm, max-pooling where the stage ends, (leaky) ReLU."""

    def __init__(self, architecture: Architecture, index: int) -> None:
        super().__init__()
        plan = architecture["blocks"][index]
        self.conv = nn.Conv2d(plan["n_inputs"], plan["n_filters"], 3, stride=plan["stride"], padding=plan["padding"])
        n_filters, warp = plan["n_filters"], plan.get("warp", 0)  # files of before have none
        self.warp = nn.Conv2d(n_filters, n_filters, warp, padding=warp // 2, bias=False) if warp else nn.Identity()
        self.norm = build_norm(architecture, f"block{index}.norm")
        self.pools, self.negative_slope = plan["pools"], architecture["negative_slope"]

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, F, H', W') for x (n, C, H, W)."""
        x = self.norm(self.warp(self.conv(x)))
        return F.leaky_relu(pool(x) if self.pools else x, self.negative_slope)


class ConvolutionalNetwork(nn.Module):
    """Convolutional blocks; the map, flattened or averaged, is the features; a linear head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.n_blocks, self.global_average = len(architecture["blocks"]), architecture["global_average"]
        for index in range(self.n_blocks):
            self.add_module(f"block{index}", ConvolutionalBlock(architecture, index))
        self.feature_scale = architecture.get("feature_scale", 0.0)  # files of before have none
        self.head = build_head(architecture)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, N), or features, of images (n, C, H, W)."""
        x = images
        for index in range(self.n_blocks):
            x = self.get_submodule(f"block{index}")(x)
        x = x.mean(dim=(2, 3)) if self.global_average else x.flatten(1)
        return self.head(F.layer_norm(x, x.shape[-1:]) * self.feature_scale if self.feature_scale else x)


class ResidualBlock(nn.Module):
    """Convolutions with norms and ReLU between them, plus the input."""

    def __init__(self, architecture: Architecture, name: str, plan: dict[str, Any]) -> None:
        super().__init__()
        self.n_convolutions, self.pools, self.negative_slope = (
            len(plan["convolutions"]),
            plan["pools"],
            architecture["negative_slope"],
        )
        for number, (n_inputs, n_filters, kernel, stride) in enumerate(plan["convolutions"], 1):
            self.add_module(f"conv{number}", nn.Conv2d(n_inputs, n_filters, kernel, stride, kernel // 2, bias=False))
            self.add_module(f"bn{number}", build_norm(architecture, f"{name}.bn{number}"))
        self.downsample = None
        if plan["downsample"]:
            n_inputs, n_filters, kernel, stride = plan["downsample"]
            conv = nn.Conv2d(n_inputs, n_filters, kernel, stride, bias=False)
            self.downsample = nn.Sequential(conv, build_norm(architecture, f"{name}.downsample.1"))

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, F, H', W') for x (n, C, H, W)."""
        out = x
        for number in range(1, self.n_convolutions + 1):
            out = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(out))
            if number < self.n_convolutions:
                out = F.leaky_relu(out, self.negative_slope)
        out = out + (x if self.downsample is None else self.downsample(x))
        return F.leaky_relu(pool(out) if self.pools else out, self.negative_slope)


class ResidualNetwork(nn.Module):
    """torchvision's ResNets, and those of the few-shot literature, under torchvision's names."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.n_stages, stem = len(architecture["stages"]), architecture["stem"]
        self.conv1 = None
        if stem:
            n_inputs, n_filters, kernel, stride = stem["convolution"]
            self.conv1 = nn.Conv2d(n_inputs, n_filters, kernel, stride, kernel // 2, bias=False)
            self.bn1 = build_norm(architecture, "bn1")
            self.maxpool = nn.MaxPool2d(3, 2, 1) if stem["pools"] else nn.Identity()
        for stage, blocks in enumerate(architecture["stages"], 1):
            built = [ResidualBlock(architecture, f"layer{stage}.{number}", plan) for number, plan in enumerate(blocks)]
            self.add_module(f"layer{stage}", nn.Sequential(*built))
        self.fc = build_head(architecture)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, N), or features, of images (n, C, H, W)."""
        x = images
        if self.conv1 is not None:
            x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.n_stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean(dim=(2, 3)))


class MultilayerPerceptron(nn.Module):
    """Fully connected layers with ReLU between them."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        sizes = architecture["sizes"]
        self.n_layers = len(sizes) - 1
        for index in range(self.n_layers):
            self.add_module(f"layer{index}", nn.Linear(sizes[index], sizes[index + 1]))
        self.head = build_head(architecture)

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs (n, N), or features, of images (n, C, H, W), or of arrays (n, ...)."""
        x = images.flatten(1)
        for index in range(self.n_layers):
            x = F.relu(self.get_submodule(f"layer{index}")(x))
        return self.head(x)
