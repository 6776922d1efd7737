"""A user's module, wrapped, is what the same network of ours is; whatever cannot work is one clear error."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from few_shot_learning_system import build_learner
from meta_learning.networks.foreign_checks import foreign_network
from meta_learning.networks.passes import Pass
from tests.tools.gate import few_of
from tests.tools.learners import PLUS_PLUS, PlainBlock, random_episodes, small_config, small_learner, worst_difference
from utils import registry
from utils.errors import ConfigError

STATISTICS = ("transductive", "running", "support", "episodic", ["support", "episodic"], ["running", "support"])


class Plain(nn.Module):
    """The network that SMALL describes, as a user would write it, with dropout after each block."""

    def __init__(self, rate: float = 0.0, n_way: int = 3) -> None:
        super().__init__()
        self.block0, self.drop0, self.block1, self.drop1 = (
            PlainBlock(1, 3),
            nn.Dropout(rate),
            PlainBlock(3, 3),
            nn.Dropout(rate),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 3 * 3, n_way))

    def forward(self, x):
        """Return logits."""
        return self.classifier(self.drop1(self.block1(self.drop0(self.block0(x)))))


class Recurrent(nn.Module):
    """Reads an image line by line."""

    def __init__(self, n_way: int = 3) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(12, 5, batch_first=True), nn.Linear(5, n_way)

    def forward(self, x):
        """Return logits."""
        return self.head(self.lstm(x.flatten(1, 2))[0][:, -1])


class Attention(nn.Module):
    """Attends over the lines of an image."""

    def __init__(self, n_way: int = 3) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(12, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, n_way, bias=False)

    def forward(self, x):
        """Return logits."""
        return self.head(self.encoder(x.flatten(1, 2)).mean(1))


@pytest.fixture(autouse=True)
def user(monkeypatch):
    """`user(build, name="mine")` registers a network for one test."""
    monkeypatch.setattr(registry, "_backbones", {})

    def register(build, name="mine"):
        registry.register_backbone(name, lambda config, image_shape, n_way: build(n_way=n_way))

    return register


def both(user, rate=0.0, **changes):
    """Two learners of the same network and weights: the project's own, and a user's module."""
    own = small_learner(dropout_rate_value=rate, **changes)
    user(lambda n_way: Plain(rate, n_way))
    theirs = build_learner(small_config(backbone="mine", **changes), "cpu")
    theirs.network.load_state_dict(
        {name.replace("head.", "classifier.1."): value for name, value in own.network.state_dict().items()}, strict=True
    )
    return own, theirs


def own_names(tensors):
    return {name.replace("network.body.", "network."): value for name, value in tensors.items()}


BATCHINGS = [(batching, statistics) for batching in ("batched", "loop") for statistics in STATISTICS]
QUICK = [("batched", statistics) for statistics in STATISTICS[::2]] + [("loop", other) for other in STATISTICS[1::2]]


@pytest.mark.parametrize("case", few_of(BATCHINGS, *QUICK), ids=lambda case: f"{case[1]}-{case[0]}")
def test_a_users_network_has_the_meta_gradients_and_statistics_of_the_same_network_of_ours(user, case):
    batching, statistics = case
    own, theirs = both(user, batch_norm_statistics=statistics, **PLUS_PLUS)
    theirs.network.together = batching == "batched"
    episodes = random_episodes(small_config())
    for _ in range(2):
        expected, found = own.meta_gradients(episodes, 0), theirs.meta_gradients(episodes, 0)
        assert worst_difference(own_names(found.gradients), expected.gradients) < 1e-9
        assert (
            worst_difference(
                {name.replace("body.", ""): value for name, value in found.statistics.items()}, expected.statistics
            )
            < 1e-9
        )
        own.meta_update(expected, 0)
        theirs.meta_update(found, 0)
    for test in ("transductive", "running", "support", "episodic"):
        expected, found = (learner.evaluate(episodes, statistics=test).query_logits for learner in (own, theirs))
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9), test


@pytest.mark.parametrize(
    "changes",
    [
        {"enable_inner_loop_optimizable_bn_params": True},
        {"learnable_batch_norm_momentum": True, "batch_norm_statistics": "running"},
        {"norm_layer": "task_norm", "batch_norm_statistics": "support"},
        {"norm_layer": "group_norm", "norm_groups": 3},
        {"norm_layer": "layer_norm"},
        {"adapted_parameters": "head", "second_order": False},
        {"outer_update": "displacement", "second_order": False},
        {"rate": 0.4},
        {"rate": 0.4, "batch_norm_statistics": "support", **PLUS_PLUS},
        {"head": "prototypes"},
        {"head": "prototypes", "learnable_inner_loop_learning_rates": "per_element"},
        {"gradient_clip_norm": 0.1, "inner_loop_optimizer": "adam"},
        {"head": "zero", "learnable_inner_loop_learning_rates": "per_element"},
        {"gradient_checkpointing": True, "rate": 0.4, "batch_norm_statistics": "episodic"},
    ],
    ids=str,
)
def test_every_other_choice_does_for_a_users_network_what_it_does_for_ours(user, changes):
    own, theirs = both(user, **changes)
    episodes = random_episodes(small_config())
    for together in (True, False):
        theirs.network.together = together
        found = own_names(theirs.meta_gradients(episodes, 0).gradients)
        found = {name.replace("body/", ""): value for name, value in found.items()}
        assert worst_difference(found, own.meta_gradients(episodes, 0).gradients) < 1e-9
        found, expected = (
            learner.evaluate(episodes, statistics="transductive").query_logits for learner in (theirs, own)
        )
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_saved_it_has_the_names_of_the_users_module(user):
    _, theirs = both(user)
    plain = Plain().double()
    state = theirs.network.state_dict()
    counts = {name: value for name, value in plain.state_dict().items() if name.endswith("num_batches_tracked")}
    plain.load_state_dict(state | counts, strict=True)
    twin = build_learner(small_config(backbone="mine"), "cpu")
    twin.load_state_tensors(theirs.state_tensors())
    assert all(torch.equal(value, twin.state_tensors()[name]) for name, value in theirs.state_tensors().items())
    assert "network.classifier.1.weight" in theirs.state_tensors() and "network.head.weight" in theirs.meta_parameters()


def test_the_users_own_initialisation_follows_from_the_seed(user):
    user(lambda n_way: Plain(n_way=n_way))
    states = [build_learner(small_config(backbone="mine", seed=seed), "cpu").network.state_dict() for seed in (1, 1, 2)]
    assert torch.equal(states[0]["block0.conv.weight"], states[1]["block0.conv.weight"])
    assert not torch.equal(states[0]["block0.conv.weight"], states[2]["block0.conv.weight"])
    torch.manual_seed(1)
    assert torch.equal(Plain().block0.conv.weight.double(), states[0]["block0.conv.weight"])


def test_a_network_given_to_the_learner_is_copied_or_made_and_registered_nowhere(user):
    user(lambda n_way: Plain(n_way=n_way))
    config, module = small_config(backbone=registry.GIVEN_NETWORK), Plain()
    copied = build_learner(config, "cpu", network=module).network.state_dict()
    assert torch.equal(copied["block0.conv.weight"], module.block0.conv.weight.double())
    assert module.block0.conv.weight.dtype == torch.float32  # it is left alone
    made = build_learner(config, "cpu", network=lambda config, image_shape, n_way: Plain(n_way=n_way))
    registered = build_learner(small_config(backbone="mine"), "cpu")
    for name, value in registered.network.state_dict().items():
        assert torch.equal(made.network.state_dict()[name], value)
    with pytest.raises(ConfigError, match='"given_network" is a network that a Python program gave; give it again'):
        build_learner(config, "cpu")
    with pytest.raises(ConfigError, match='there is a backbone "given_network" already'):
        registry.register_backbone(registry.GIVEN_NETWORK, Plain)


def test_lazy_layers_are_made_and_drawn_under_the_seed_too(user):
    user(lambda n_way: nn.Sequential(nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(n_way)))
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        states.append(build_learner(small_config(backbone="mine"), "cpu").network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items()) and states[0][
        "3.weight"
    ].shape == (3, 200)


def test_norms_inside_sequentials_of_one_dimension_and_of_two_are_replaced(caplog):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU(inplace=True)),
            nn.Flatten(2),
            nn.Conv1d(4, 3, 1),
            nn.BatchNorm1d(3),
            nn.Flatten(),
            nn.Linear(48, 6),
            nn.BatchNorm1d(6, affine=False),
            nn.LayerNorm(6),
            nn.Linear(6, 2),
        )

    network, plain = foreign_network(make().double(), (1, 6, 6), 2), make().double()
    assert network.together and network.stage_names == ["body.0", "body.3", "body.6", "body.7"]
    images = torch.randn(2, 5, 1, 6, 6, dtype=torch.float64)
    plain.train()
    assert torch.allclose(network(images), torch.stack([plain(task) for task in images]), rtol=1e-10)
    fresh = make().double().eval()
    assert torch.allclose(
        network(images, None, Pass(statistics="running")), torch.stack([fresh(task) for task in images]), rtol=1e-10
    )
    assert set(network.norm_layers()) == {"body.0.1", "body.3", "body.6", "body.7"}


def test_a_copy_of_a_network_is_on_its_own(user):
    _, theirs = both(user, rate=0.5)
    network, twin = theirs.network, copy.deepcopy(theirs.network)
    images = torch.randn(2, 4, 1, 12, 12, dtype=torch.float64)
    pass_ = Pass(dropout_seeds=torch.tensor([1, 2]))
    expected = network(images, None, pass_)
    assert torch.equal(twin(images, None, pass_), expected)
    with torch.no_grad():
        twin.body.block0.conv.weight.zero_()
    assert torch.equal(network(images, None, pass_), expected) and not torch.equal(twin(images, None, pass_), expected)


@pytest.mark.parametrize(
    ("module", "together"), [(Recurrent, False), (Attention, True)], ids=lambda value: getattr(value, "__name__", "")
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_recurrent_and_attending_networks_are_differentiated_twice(user, caplog, module, together):
    """The meta-gradient along a random direction, against central differences of the outer loss."""
    user(module)
    with caplog.at_level(logging.INFO):
        learner = build_learner(small_config(backbone="mine", number_of_training_steps_per_iter=2), "cpu")
    lines = [record.getMessage() for record in caplog.records if "one after the other" in record.getMessage()]
    assert learner.network.together == together and len(lines) == (0 if together else 1)
    if lines:
        assert lines[0].startswith(
            'backbone "mine" computes its tasks one after the other, since they cannot be batched: '
        )
    episodes = random_episodes(small_config(number_of_training_steps_per_iter=2))
    gradients = learner.meta_gradients(episodes, 0).gradients
    generator = torch.Generator().manual_seed(0)
    parameters = learner.meta_parameters()
    direction = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in parameters.items()
    }
    slope = sum(float((gradients[name] * direction[name]).sum()) for name in gradients)

    def loss_at(distance):
        with torch.no_grad():
            for name, value in parameters.items():
                value.add_(direction[name], alpha=distance)
        loss = float(learner.evaluate(episodes).query_loss[-1].mean())
        with torch.no_grad():
            for name, value in parameters.items():
                value.sub_(direction[name], alpha=distance)
        return loss

    assert (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_a_named_head_and_a_head_of_each_episode(user):
    class TwoLinears(nn.Module):
        def __init__(self, n_way):
            super().__init__()
            self.classify, self.project = nn.Linear(4, n_way), nn.Linear(144, 4)

        def forward(self, x):
            return self.classify(self.project(x.flatten(1)))

    user(TwoLinears)
    with pytest.raises(
        ConfigError, match=r'its head "project" has 4 outputs, but "num_classes_per_set" is 3; .*"head_name"'
    ):
        build_learner(small_config(backbone="mine"), "cpu")
    learner = build_learner(small_config(backbone="mine", head_name="classify"), "cpu")
    assert set(dict(learner.network.named_parameters())) == {
        "body.project.weight",
        "body.project.bias",
        "head.weight",
        "head.bias",
    }
    learner = build_learner(
        small_config(backbone="mine", head_name="classify", head="zero", num_classes_per_set=[3, 5]), "cpu"
    )
    for ways in (3, 5):
        config = small_config(num_classes_per_set=ways)
        assert learner.evaluate(random_episodes(config)).query_logits.shape == (4, 2 * ways, ways)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        """Return logits."""
        return self.head(self.second(self.first(x.flatten(1))))


class Body(nn.Module):
    """A network with something wrong in `between`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def between(self, x):
        """Return features of features."""
        return x

    def forward(self, x):
        """Return logits."""
        return self.head(self.between(self.first(x.flatten(1))))


def with_between(between, extra=None):
    kind = type("Mine", (Body,), {"between": between})

    def make():
        module = kind()
        if extra:
            extra(module)
        return module

    return make


def counts(self, x):
    self.calls += 1
    return x


def remembers(self, x):
    self.memory = x
    return x


def appends(self, x):
    self.seen.append(x)
    return x


ERRORS = {
    "a list": (lambda: [nn.Linear(4, 3)], "the network is a list, but must be a torch.nn.Module"),
    "shared": (
        Shared,
        '"first.weight" and "second.weight" are one shared parameter, which the inner loop would adapt as two',
    ),
    "buffer": (with_between(counts), 'keeps hidden state: its forward pass writes to "calls"'),
    "attribute": (with_between(remembers), 'keeps hidden state: its forward pass writes to "memory"'),
    "list": (
        with_between(appends, lambda m: setattr(m, "seen", [])),
        'keeps hidden state: its forward pass writes to "seen"',
    ),
    "random": (
        with_between(lambda self, x: F.dropout(x, 0.5, self.training)),
        "draws random numbers of its own in training mode",
    ),
    "lstm dropout": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.AlphaDropout(0.5), nn.Linear(4, 3)),
        "draws random numbers",
    ),
    "softmax": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1)),
        'the linear layer "1" is not the last operation',
    ),
    "no linear layer": (
        lambda: nn.Sequential(nn.Flatten(), nn.Identity()),
        "has no linear layer inside, and so no head",
    ),
    "not logits": (
        lambda: nn.Sequential(nn.Linear(2, 3)),
        r"returns a tensor of shape (3, 1, 2, 3) for 3 images, but must return logits",
    ),
    "unused layer": (
        with_between(Body.between, lambda m: setattr(m, "idle", nn.Conv2d(1, 1, 1))),
        'not use its parameter "idle.weight"',
    ),
    "unused norm": (
        with_between(Body.between, lambda m: setattr(m, "idle", nn.BatchNorm2d(1))),
        'does not use its layer "idle"',
    ),
    "own error": (
        with_between(lambda self, x: x.nonsense()),
        'its forward pass for (3, 1, 2, 2) ("input_shape" or, of images, "image_channels", "image_height" and '
        '"image_width" say what it gets) fails: AttributeError: ',
    ),
    "detached": (with_between(lambda self, x: x.detach()), 'not use its parameter "first.weight"'),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_work_is_one_clear_error(case):
    make, text = ERRORS[case]
    with pytest.raises(ConfigError) as error:
        foreign_network(make(), (1, 2, 2), 3)
    assert text in str(error.value)


def test_an_error_of_the_users_code_names_its_line():
    with pytest.raises(ConfigError, match=r"test_foreign_networks.py, line \d+\)"):
        foreign_network(with_between(lambda self, x: x.nonsense())(), (1, 2, 2), 3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"head_name": "fc"}, '"head_name" is "fc", but backbone "mine" has the linear layers head'),
        (
            {"task_batching": "batched"},
            '"task_batching" is "batched", but backbone "mine" cannot compute several tasks together',
        ),
    ],
)
def test_keys_that_do_not_fit_the_network_are_refused(user, changes, text):
    user(Recurrent)
    with pytest.raises(ConfigError) as error:
        build_learner(small_config(backbone="mine", **changes), "cpu")
    assert text in str(error.value)


def test_keys_of_a_users_network_are_refused_with_another():
    for changes in ({"head_name": "fc"}, {"task_batching": "loop"}):
        with pytest.raises(ConfigError, match=r'means nothing with "backbone" vgg; leave it out$'):
            small_config(**changes)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_cannot_be_differentiated_twice_says_so():
    make = with_between(lambda self, x: F.embedding_bag(torch.arange(len(x))[:, None], x.tanh(), mode="sum"))
    with pytest.raises(
        ConfigError,
        match=r'cannot be differentiated twice: .*not implemented.*; "second_order" false needs one derivative',
    ):
        foreign_network(make(), (1, 2, 2), 3)
    foreign_network(make(), (1, 2, 2), 3, second_order=False)
