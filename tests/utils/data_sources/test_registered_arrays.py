"""Datasets of a plugin that are no images: drawn, packed, known by content, resumed and tested like images."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from data import build_data
from experiment_parts.evaluation.baselines import WORDS
from experiment_parts.records.diagnostics import write_examples
from experiment_parts.runs.comparison import differences
from few_shot_learning_system import build_learner
from tests.tools.runs import TINY, run_tiny
from tests.whole_runs.test_exact_resume import StopsAt
from utils import registry
from utils.config import check_config
from utils.errors import ConfigError, DataError, Interrupted

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def own_registry(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_datasets", {})
    monkeypatch.setattr(registry, "_backbones", {})
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "datasets"))
    return registry


def made(shape, dtype, n=8, n_classes=4):
    draw = np.random.default_rng(0)
    return {
        split: {f"{split}{c}": (40 * draw.standard_normal((n, *shape)) + c).astype(dtype) for c in range(n_classes)}
        for split in SPLITS
    }


def config_of(shape, **changes):
    keys = {"dataset_name": "mine", "input_shape": list(shape), "backbone": "mlp", "test_baselines": True}
    return check_config(TINY | keys | changes, "test")


def data_of(dataset, shape, **changes):
    registry._datasets["mine"] = lambda config: dataset
    return build_data(config_of(shape, **changes), "cpu")


@pytest.mark.parametrize(("shape", "dtype"), [((16,), np.float64), ((2, 5), np.int16), ((1, 3, 4, 2), np.float32)])
def test_an_episode_has_the_very_numbers_of_its_classes(shape, dtype):
    dataset = made(shape, dtype)
    data = data_of(dataset, shape)
    batch = data.episodes("val", range(5))
    for task, ranks in enumerate(batch.class_ids):
        for way, rank in enumerate(ranks):
            of_class = torch.from_numpy(dataset["val"][f"val{rank}"]).float()
            for image in (*batch.support_images[task][batch.support_labels[task] == way],
                          *batch.query_images[task][batch.query_labels[task] == way]):  # fmt: skip
                assert (image == of_class).flatten(1).all(1).any()
    assert batch.support_images.shape[2:] == data.example_shape() == shape
    assert data.as_pixels(batch.support_images) is None


def test_images_and_bytes_that_are_none_differ_in_their_scale_alone():
    dataset = made((10, 10), np.uint8)
    images, numbers = (
        data_of(dataset, shape, backbone=backbone, image_height=10, image_width=10).episodes("train", range(3))
        for shape, backbone in (((), "vgg"), ((10, 10), "mlp"))
    )
    assert torch.equal(images.query_images, numbers.query_images[:, :, None] / 255)
    assert torch.equal(images.seeds, numbers.seeds)


def test_the_digest_of_a_plugins_images_is_that_of_before():
    """Names and bytes, nothing else; other types add their type and shape."""
    dataset = made((10, 10), np.uint8)
    names = [f"{split}/{name}/{n}" for split in SPLITS for name in dataset[split] for n in range(8)]
    pixels = np.concatenate([images for split in SPLITS for images in dataset[split].values()])
    expected = hashlib.sha256("\n".join(names).encode() + pixels.tobytes()).hexdigest()
    data = data_of(dataset, (), backbone="vgg", image_height=10, image_width=10)
    assert data.identity()["content_sha256"] == expected
    values = made((6,), np.int32)
    as_int, as_float = (
        data_of({s: {c: v.astype(kind) for c, v in classes.items()} for s, classes in values.items()}, (6,)).identity()
        for kind in (np.int32, np.float32)
    )
    assert as_int["content_sha256"] != as_float["content_sha256"] and as_int["splits"] == as_float["splits"]


def test_numbers_mapped_from_a_file_give_the_same_episodes_and_are_written_once(tmp_path):
    dataset = made((2, 7), np.float32)
    in_memory, mapped = (data_of(dataset, (2, 7), load_into_memory=there) for there in (True, False))
    packed = list((tmp_path / "datasets" / ".packed").glob("mine.plugin.2x7.*.float32"))
    assert len(packed) == 1 and packed[0].stat().st_size == 3 * 4 * 8 * 14 * 4
    assert (in_memory.meta_batches_ahead, mapped.meta_batches_ahead) == (0, 2)
    assert in_memory.identity() == mapped.identity()
    for split in SPLITS:
        one, other = (data.episodes(split, range(4)) for data in (in_memory, mapped))
        assert torch.equal(one.support_images, other.support_images)
    before = packed[0].stat().st_mtime_ns
    data_of(dataset, (2, 7), load_into_memory=False)
    assert packed[0].stat().st_mtime_ns == before
    packed[0].write_bytes(bytes(packed[0].stat().st_size))  # damaged
    again = data_of(dataset, (2, 7), load_into_memory=False).episodes("val", range(4))
    assert torch.equal(again.query_images, in_memory.episodes("val", range(4)).query_images)
    dataset["train"]["train0"] = dataset["train"]["train0"] + 1
    data_of(dataset, (2, 7), load_into_memory=False)
    left = list((tmp_path / "datasets" / ".packed").glob("mine.plugin.*.float32"))
    assert len(left) == 1 and left != packed


class Sentences(nn.Module):
    """Means of embeddings where the mask is true."""

    def __init__(self, n_way):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 6), nn.Linear(6, n_way)

    def forward(self, *, ids, mask):
        weights = mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        return self.head((self.embedding(ids) * weights).sum(1) / weights.sum(1).clamp(min=1))


def sentences():
    draw = np.random.default_rng(0)
    lengths = np.arange(8) % 4 + 2
    return {
        split: {
            f"{split}{c}": {"ids": draw.integers(10 * c, 10 * c + 10, (8, 6)), "mask": np.arange(6) < lengths[:, None]}
            for c in range(4)
        }
        for split in SPLITS
    }


TEXT = {"input_shape": ["ids:int:6", "mask:bool:6"], "backbone": "sentences", "init_inner_loop_learning_rate": 0.5}


@pytest.fixture
def text(own_registry):
    own_registry._backbones["sentences"] = lambda config, shape, n_way: (
        Sentences(n_way) if shape == {"ids": (6,), "mask": (6,)} else None
    )
    own_registry._datasets["mine"] = lambda config: sentences()
    return check_config(TINY | {"dataset_name": "mine"} | TEXT, "test")


def test_ids_and_mask_reach_a_network_by_name_and_its_meta_gradient_is_that_of_a_plain_loop(text):
    """One inner step by hand, on the sentences themselves, in float64."""
    config = check_config(text.to_json_dict() | {"number_of_training_steps_per_iter": 1, "precision": "float64",
                          "number_of_evaluation_steps_per_iter": 1, "use_multi_step_loss_optimization": False,
                          "learnable_per_layer_per_step_inner_loop_learning_rate": False}, "test")  # fmt: skip
    learner, data = build_learner(config, "cpu"), build_data(config, "cpu", torch.float64)
    assert learner.network.together
    batch = data.episodes("train", range(2))
    found = learner.meta_gradients(batch, 0).gradients
    names = {"network.body.embedding.weight": "embedding.weight", "network.head.weight": "head.weight",
             "network.head.bias": "head.bias"}  # fmt: skip
    module = Sentences(3).double()
    own = dict(learner.meta_parameters())
    start = {plain: own[name].detach().clone().requires_grad_() for name, plain in names.items()}

    def loss(params, examples, labels):
        arguments = {"ids": examples[:, :6].long(), "mask": examples[:, 6:].bool()}
        return nn.functional.cross_entropy(torch.func.functional_call(module, params, (), arguments), labels)

    outer = 0.0
    for task in range(2):
        inner = loss(start, batch.support_images[task], batch.support_labels[task])
        gradients = torch.autograd.grad(inner, list(start.values()), create_graph=True)
        adapted = {name: value - 0.5 * g for (name, value), g in zip(start.items(), gradients, strict=True)}
        outer = outer + loss(adapted, batch.query_images[task], batch.query_labels[task]) / 2
    expected = dict(zip(names, torch.autograd.grad(outer, list(start.values())), strict=True))
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-9 * value.norm()


def beside(learner, data):
    episodes = data.episodes("test", range(2))
    return learner.baselines(episodes, learner.evaluate(episodes, keep_features=True), n_untrained=2)


def test_what_only_images_have_is_absent(text, tmp_path):
    config = check_config(text.to_json_dict() | {"test_baselines": True}, "test")
    data, learner = build_data(config, "cpu"), build_learner(config, "cpu")
    assert write_examples(tmp_path / "examples", learner, data, 0) == [] and not (tmp_path / "examples").exists()
    found = beside(learner, data)
    assert "centroids" in found and not {"pixels", "inputs"} & set(found)
    numbers = data_of(made((16,), np.float32), (16,))
    found = beside(build_learner(config_of((16,)), "cpu"), numbers)
    assert "inputs" in found and "pixels" not in found and set(found) - {"label_orders"} <= set(WORDS)


def test_a_run_that_was_interrupted_goes_on_to_the_same_bits_and_not_on_other_numbers(tmp_path):
    dataset = made((2, 7), np.float32)

    def run(root, *stop, dataset=dataset):
        registry._datasets["mine"] = lambda config: dataset
        return run_tiny(root, *stop, data=lambda config: build_data(config, "cpu"), **changes)

    changes = {"dataset_name": "mine", "input_shape": [2, 7], "backbone": "mlp", "checkpoint_every_s": 1e-9}
    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", StopsAt(4, kills=False))
    other = dataset | {"train": {name: values + 1 for name, values in dataset["train"].items()}}
    with pytest.raises(DataError, match="has started with other data, which a started run cannot change"):
        run(tmp_path / "stopped", dataset=other)
    assert differences(run(tmp_path / "stopped"), whole) == []


def broken(change):
    dataset = made((4,), np.float32)
    change(dataset["train"])
    return dataset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda train: train.update(a=np.zeros((8, 5), np.float32)),
            r'class "a" \(train\) is float32 \(8, 5\), but must be an array \(n, 4\) of numbers, as input_shape says',
        ),
        (
            lambda train: train.update(a=np.zeros((8, 4), np.float64)),
            r'arrays of 2 types: float32 in class "train0" \(train\), float64 in class "a" \(train\); bring them',
        ),
        (
            lambda train: train.update(a=[np.zeros(4), np.zeros(6)]),
            r'class "a" \(train\) has examples of 2 shapes, .*; bring sequences to one length and give a mask',
        ),
        (lambda train: train["train1"].__setitem__((0, 0), np.inf), r'class "train1" \(train\) holds NaN or infinity'),
    ],
)
def test_arrays_that_do_not_go_together_are_refused_with_their_class(change, message):
    with pytest.raises(DataError, match=message):
        data_of(broken(change), (4,))


def test_a_folder_of_images_is_not_read_as_arrays():
    with pytest.raises(ConfigError, match='dataset "mine" is a folder of images, but "input_shape" says'):
        build_data(config_of((4,)), "cpu")


def test_a_regression_of_two_numbers_gets_the_targets_of_its_points():
    draw = np.random.default_rng(0)
    slopes = {split: {f"{split}{t}": draw.standard_normal((3, 2)) for t in range(4)} for split in SPLITS}
    points = draw.standard_normal((8, 3))
    dataset = {split: {name: (points, points @ slope) for name, slope in tasks.items()}
               for split, tasks in slopes.items()}  # fmt: skip
    keys = {"loss": "mean_squared_error", "num_regression_outputs": 2, "num_samples_per_class": 3}
    data = data_of(dataset, (3,), **keys)
    batch = data.episodes("test", range(6))
    assert batch.support_labels.shape == (6, 3, 2) and batch.query_labels.shape == (6, data.shape.n_query, 2)
    for task, (rank,) in enumerate(batch.class_ids):
        slope = torch.from_numpy(slopes["test"][f"test{rank}"]).float()
        for role in ("support", "query"):
            x, y = getattr(batch, f"{role}_images")[task], getattr(batch, f"{role}_labels")[task]
            assert torch.allclose(x @ slope, y, atol=1e-5)
    learner = build_learner(config_of((3,), **keys), "cpu")
    assert learner.evaluate(batch).query_logits.shape == batch.query_labels.shape
    learner.meta_update(learner.meta_gradients(data.episodes("train", range(2)), 0), 0)
    for targets, message in (
        (np.zeros((8, 3)), r"has targets \(8, 3\), but must have finite numbers \(n, 2\) \(num_regression_outputs\)"),
        (np.zeros((7, 2)), "has 8 examples, but 7 targets"),
        (np.full((8, 2), 1e200), "none too large for float32"),
        (np.ma.masked_equal(np.zeros((8, 2)), 0), "has targets with masked values"),
    ):
        with pytest.raises(DataError, match=message):
            data_of(dataset | {"train": {"a": (points, targets)}}, (3,), **keys)
    with pytest.raises(DataError, match="a regression needs a pair"):
        data_of(dataset | {"train": {"a": points}}, (3,), **keys)
