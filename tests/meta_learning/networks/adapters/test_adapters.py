"""Adapters, against the plain network with other weights: what an adapter does beside a layer, a weight could do."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiment_tools.check_gradients.checks import check_learner
from experiment_tools.check_gradients.comparing import random_episodes as checked_episodes
from experiment_tools.export.plain import plain_network as exported
from experiment_tools.parts.methods import method_name
from few_shot_learning_system import build_learner
from meta_learning.networks import convolutional
from meta_learning.networks.adapters.base import Adapter
from meta_learning.networks.adapters.context import Context
from meta_learning.networks.adapters.film import FiLM
from meta_learning.networks.adapters.lora import LoRA
from meta_learning.networks.adapters.residual import ResidualAdapter
from meta_learning.networks.foreign import KeptLayerNorm
from meta_learning.networks.norms.group_norm import MetaGroupNorm
from meta_learning.networks.norms.layer_norm import MetaLayerNorm
from tests.tools.learners import random_episodes, small_config, small_learner, worst_difference
from tests.tools.methods.family import logits_of, network_values, plain_meta_gradients
from utils import registry
from utils.errors import ConfigError

OWN = {
    "lora": {"adapter_kind": "lora", "adapter_rank": 2},
    "lora of full rank": {"adapter_kind": "lora", "adapter_rank": 9},
    "residual": {"adapter_kind": "residual"},
    "film": {"adapter_kind": "film", "adapter_targets": ["norm"]},
    "context": {
        "adapter_kind": "context",
        "adapter_targets": ["block1.norm"],
        "adapter_rank": 5,
        "adapted_parameters": "body",
    },
}


class Transformer(nn.Module):
    """A tiny vision transformer of torch's own layers."""

    def __init__(self, n_way=3):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, n_way)

    def forward(self, x):
        """Return logits."""
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def transformer_learner(**changes):
    torch.manual_seed(0)
    learner = build_learner(small_config(**changes), "cpu", network=Transformer().double())
    moved(learner)
    return learner


def moved(learner):
    """Everything that adapters learn, away from zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in learner.meta_parameters().items():
            if ".adapter." in name:
                value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return learner


def in_the_weights(values):
    """The weights of the plain network that does what layers and adapters do together."""
    values = dict(values)
    for layer in {name.split(".adapter.")[0] for name in values if ".adapter." in name}:
        own = {name.removeprefix(f"{layer}.adapter."): v for name, v in values.items() if name.startswith(f"{layer}.a")}
        weight = values[f"{layer}.weight"]
        if "up.weight" in own:
            weight = weight + (own["up.weight"].flatten(1) @ own["down.weight"].flatten(1)).view(weight.shape)
        elif "matrix.weight" in own:
            matrix, sides = own["matrix.weight"].flatten(1), weight.shape[2:]
            centre = [side // 2 for side in sides]
            tap = torch.zeros(sides, dtype=weight.dtype)
            tap[tuple(centre)] = 1.0
            weight = weight + matrix.view(*matrix.shape, *[1] * len(sides)) * tap
        else:
            if "context" in own:
                film = own["film.weight"] @ own["context"] + own["film.bias"]
                own |= {"scale": film[: len(film) // 2], "shift": film[len(film) // 2 :]}
            weight = weight * (1 + own["scale"])
            values[f"{layer}.bias"] = values[f"{layer}.bias"] * (1 + own["scale"]) + own["shift"]
        values[f"{layer}.weight"] = weight
    return values


def expected_gradients(learner, episodes, logits=logits_of):
    """The meta-gradient of plain gradient descent on what is adapted, the network being one of other weights."""
    fixed = {name: value for name, value in learner.network.named_parameters() if not value.requires_grad}

    def loss_of_task(leaves, task):
        values = {name: value.detach().clone().requires_grad_() for name, value in fixed.items()}
        values |= network_values(leaves)
        for _ in range(3):
            loss = F.cross_entropy(logits(in_the_weights(values), task.support_images[0]), task.support_labels[0])
            adapted = {name: values[name] for name in learner.inner_loop.names}
            gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
            pairs = zip(adapted.items(), gradients, strict=True)
            values |= {name: value - 0.2 * gradient for (name, value), gradient in pairs}
        return F.cross_entropy(logits(in_the_weights(values), task.query_images[0]), task.query_labels[0])

    return plain_meta_gradients(learner, episodes, loss_of_task)


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}, {"adapter_base": "frozen"}], ids=str)
@pytest.mark.parametrize("choice", OWN)
def test_the_meta_gradient_is_that_of_the_same_thing_in_the_weights(choice, more):
    learner, episodes = moved(small_learner(**OWN[choice], **more)), random_episodes(small_config())
    ours, expected = learner.meta_gradients(episodes, 0).gradients, expected_gradients(learner, episodes)
    assert worst_difference(ours, expected) < 1e-9
    frozen, body = "adapter_base" in more, [n for n in ours if ".adapter." not in n and ".head." not in n]
    assert frozen == (not body)


@pytest.mark.parametrize(
    "choice",
    [
        {"adapter_kind": "lora", "adapter_rank": 2, "adapter_targets": ["*.linear?", "patches"]},
        {"adapter_kind": "lora", "adapter_targets": ["linear1"], "adapter_base": "frozen"},
        {"adapter_kind": "residual", "adapter_targets": ["linear2"]},
        {"adapter_kind": "film", "adapter_targets": ["norm2", "layers.0.norm1"]},
        {"adapter_kind": "context", "adapter_targets": ["*.norm1"], "adapted_parameters": "body"},
    ],
    ids=str,
)
def test_in_a_module_of_a_user_as_well(choice):
    learner, episodes = transformer_learner(**choice), random_episodes(small_config())
    body = Transformer().double()
    body.head = nn.Identity()
    names = [name for name, _ in body.named_parameters()]

    def logits(values, images):
        of_body = {name: values[f"body.{name}"] for name in names}
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            features = torch.func.functional_call(body, of_body, (images,))
        return F.linear(features, values["head.weight"], values["head.bias"])

    expected = expected_gradients(learner, episodes, logits)
    for learner.network.together in (True, False):
        assert worst_difference(learner.meta_gradients(episodes, 0).gradients, expected) < 1e-9
    assert any(".adapter." in name for name in learner.network.body.state_dict())


class Words(nn.Module):
    """The mean of embedded ids, where a mask says that they count."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(7, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, ids, mask):
        """Return logits."""
        words = self.hidden(self.embedding(ids)).tanh() * mask[..., None]
        return self.head(words.sum(1) / mask.sum(1, keepdim=True))


def test_in_a_module_of_other_inputs_than_images():
    seen = []
    module = Words().double()
    module.embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0].unique().tolist()))
    keys = {"adapter_kind": "lora", "adapter_targets": ["hidden"], "input_shape": ["ids:int:5", "mask:bool:5"]}
    learner = moved(build_learner(small_config(**keys, backbone="given_network"), "cpu", network=module))
    assert learner.inner_loop.names[0] == "body.hidden.adapter.down.weight" and seen == [[0, 1]] * len(seen)
    checks = check_learner(learner, _words(learner))
    assert [check for check in checks if not check.passed] == []


def _words(learner):
    episodes = checked_episodes(learner, (10,), 2, 3, 2, 2)
    ids_and_mask = {}
    for name in ("support_images", "query_images"):
        ids, mask = getattr(episodes, name).chunk(2, dim=2)
        mask = torch.cat([torch.ones_like(mask[..., :1]), (mask[..., 1:] > 0).double()], dim=2)
        ids_and_mask[name] = torch.cat([(3 * ids).long().abs().clamp(max=6).double(), mask], dim=2)
    return replace(episodes, **ids_and_mask)


def test_lora_of_full_rank_can_make_any_update():
    learner, images = small_learner(adapter_kind="lora", adapter_rank=3), torch.randn(2, 4, 1, 12, 12).double()
    plain = small_learner()
    plain.network.load_state_dict({n: v for n, v in learner.network.state_dict().items() if ".adapter." not in n})
    with torch.no_grad():
        for layer, other in ((learner.network.block0.conv, plain.network.block0.conv),
                             (learner.network.block1.conv, plain.network.block1.conv)):  # fmt: skip
            update = torch.randn(other.weight.shape, dtype=torch.float64)
            other.weight.add_(update)
            layer.adapter.up.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            layer.adapter.down.weight.copy_(update)
    assert torch.allclose(learner.network(images), plain.network(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("choice", OWN)
def test_adapters_of_zero_are_the_plain_network_to_the_bit(choice, monkeypatch):
    # An adapter stands between the convolution, norm and pooling that the first block otherwise takes in one.
    monkeypatch.setattr(convolutional, "can_use_patches", lambda *_: False)
    episodes = random_episodes(small_config())
    with_adapters = build_learner(small_config(**OWN[choice]), "cpu").evaluate(episodes, n_steps=0)
    assert torch.equal(
        with_adapters.query_logits, build_learner(small_config(), "cpu").evaluate(episodes, 0).query_logits
    )


def test_adapters_of_zero_are_the_plain_transformer_to_the_bit():
    torch.manual_seed(0)
    module, episodes = Transformer().double(), random_episodes(small_config())
    choice = {"adapter_kind": "lora", "adapter_targets": ["*.linear?"]}
    answers = [
        build_learner(small_config(**keys), "cpu", network=module).evaluate(episodes, n_steps=0).query_logits
        for keys in (choice, {"adapted_parameters": "head"})  # weights that no task has of its own
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("choice", OWN)
def test_every_check_of_gradients_passes(choice, second_order):
    learner = small_learner(**OWN[choice], second_order=second_order, batch_norm_statistics="support")
    checks = check_learner(learner, checked_episodes(learner, (1, 12, 12), 2, 3, 2, 2))
    assert [check for check in checks if not check.passed] == []


def test_a_context_begins_at_zero_in_every_episode_and_is_never_learned():
    learner, episodes = small_learner(**OWN["context"]), random_episodes(small_config())
    assert learner.inner_loop.names == ("block1.norm.adapter.context",)
    learner.meta_update(learner.meta_gradients(episodes, 0), 0)
    assert not learner.network.block1.norm.adapter.context.any()
    assert learner.adapt(episodes).params["block1.norm.adapter.context"].all()


def test_norms_that_are_freed_and_the_head_are_adapted_beside_adapters():
    choice = {"adapter_kind": "lora", "adapter_targets": ["block1"], "enable_inner_loop_optimizable_bn_params": True}
    norms = [f"block{block}.norm.{name}" for block in (0, 1) for name in ("weight", "bias")]
    of_adapter = [f"block1.conv.adapter.{name}.weight" for name in ("down", "up")]
    assert set(small_learner(**choice).inner_loop.names) == {*norms, *of_adapter, "head.weight", "head.bias"}


def test_the_method_is_called_by_its_name():
    names = [method_name(small_config(**choice).to_json_dict()) for choice in OWN.values()]
    assert names == ["LoRA", "LoRA", "residual adapters", "FiLM", "CAVIA"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"adapter_kind": "lora", "adapter_targets": ["block7"]},
            '"adapter_targets": "block7" matches no layer of the body that "adapter_kind" lora fits; those are '
            r"block0\.conv, block1\.conv$",
        ),
        ({"adapter_kind": "lora", "adapter_targets": ["norm"]}, '"norm" matches no layer of the body'),
        ({"adapter_kind": "residual", "conv_padding": False}, r"fits; those are \(none\)"),
        ({"adapter_targets": ["block0"]}, '"block0". means nothing with "adapter_kind" none; leave it out, or set'),
        (
            {"adapter_kind": "film", "adapter_rank": 2},
            '2 means nothing with "adapter_kind" film; leave it out, or set "adapter_kind" to "context" or "lora"$',
        ),
        (
            {"adapter_kind": "lora", "adapted_parameters": "head"},
            '"adapter_kind" lora does not go with "adapted_parameters" head',
        ),
        (
            {"adapter_kind": "lora", "outer_update": "displacement", "second_order": False},
            r'does not go with "outer_update" displacement \(Reptile\)',
        ),
        (
            {"adapter_kind": "lora", "adapter_base": "frozen", "pretraining_epochs": 1},
            'does not go with "adapter_base" frozen and "pretraining_epochs", which learn the body',
        ),
        (
            {"adapter_kind": "lora", "number_of_training_steps_per_iter": 0, "head": "prototypes"},
            r'"number_of_training_steps_per_iter" 0 \(ProtoNet, R2D2\) takes "adapter_kind" none',
        ),
        ({"adapter_kind": "lor"}, '"adapter_kind" is "lor", but must be: .*\'none\''),
    ],
)
def test_wrong_use_gives_one_clear_error(choice, message):
    with pytest.raises(ConfigError, match=message):
        small_learner(**choice)


def test_a_layer_that_is_never_called_is_refused():
    called = r"body\.encoder\.layers\.0\.linear1, body\.encoder\.layers\.0\.linear2"
    weights = r"takes the weights of body\.encoder\.layers\.0\.self_attn\.out_proj, .* without calling the layer, "
    with pytest.raises(ConfigError, match=f"{weights}.*name some of those that it calls: .*{called}"):
        transformer_learner(adapter_kind="lora")
    with pytest.raises(ConfigError, match=r'"lineer" matches no .* those are (?!.*out_proj).*linear2$'):
        transformer_learner(adapter_kind="lora", adapter_targets=["lineer"])


def test_an_adapter_of_ones_own_must_be_one(monkeypatch):
    monkeypatch.setattr(registry.choices, "_chosen", {})

    class Nameless(Adapter):
        def __init__(self, layer):
            super().__init__()

        def forward(self, x, out):
            return out

    registry.register_adapter_kind("nameless", Nameless)
    registry.register_adapter_kind("none_at_all", dict)
    with pytest.raises(ConfigError, match=r"`adapts` of Nameless is \(\), but must name some of its parameters"):
        small_learner(adapter_kind="nameless")
    with pytest.raises(ConfigError, match=r'"none_at_all" is .*dict.*, but must be a subclass of .*\.Adapter'):
        small_learner(adapter_kind="none_at_all")


LAYERS = {
    "linear": (nn.Linear(4, 6), (4,)),
    "no bias": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (4, 7, 7)),
    "dilated": (nn.Conv1d(4, 6, 3, padding=2, dilation=2), (4, 9)),
    "norm": (MetaGroupNorm(2, 4), (4, 5, 5)),
    "layer norm of maps": (MetaLayerNorm((4, 5, 5)), (4, 5, 5)),
    "layer norm": (KeptLayerNorm(4, bias=False), (6, 4)),
}
"""Layers, and the shape of an example of each."""


@pytest.mark.parametrize("make", [LoRA, ResidualAdapter, FiLM, Context])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_the_merged_weights_answers_as_layer_and_adapter_together(name, make):
    layer, x = copy.deepcopy(LAYERS[name][0]).double(), torch.randn(5, *LAYERS[name][1]).double()
    assert make.fits(layer) == (make in (FiLM, Context) or "norm" not in name)
    if not make.fits(layer):
        return
    adapter = make(layer, **{LoRA: {"rank": 2}, Context: {"size": 3}}.get(make, {})).double()
    with torch.no_grad():
        for parameter in (*layer.parameters(), *adapter.parameters()):
            parameter.add_(torch.randn_like(parameter))
        expected = adapter(x, layer(x))
        bias = layer.weight.new_zeros((layer.weight if "norm" in name else layer.weight.flatten(1)[:, 0]).shape)
        weight, bias = adapter.merged(layer.weight, bias if layer.bias is None else layer.bias)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


class Negative(Adapter):
    """One that no weight can stand for."""

    adapts = ("share",)

    def __init__(self, layer):
        super().__init__()
        self.share = nn.Parameter(torch.ones(()))

    def forward(self, x, out):
        """Return the outputs, less of those below zero."""
        return torch.maximum(out, self.share * out)


def test_what_cannot_be_merged_is_not_exported_without_it(monkeypatch):
    monkeypatch.setattr(registry.choices, "_chosen", {})
    registry.register_adapter_kind("negative", Negative)
    config = small_config(adapter_kind="negative")
    message = (
        '"adapter_kind" negative: Negative cannot be merged into the layer block0.conv .*; classify with FewShotClass'
    )
    with pytest.raises(ConfigError, match=message):
        exported(build_learner(config, "cpu"), None, config)
    even = nn.Conv1d(2, 2, 2, padding=1, dilation=2)  # its taps lie beside the pixel that the matrix reads
    with pytest.raises(NotImplementedError):
        ResidualAdapter(even).merged(even.weight, even.bias)
