"""Datasets as people hold them in Python, and the episodes that come of them."""

import numpy as np
import pytest
import torch

from few_shot_classifier import FewShotClassifier
from few_shot_classifier.arrays import InputError
from few_shot_classifier.datasets import TaskEpisodes, evaluation_data, first_image_shape, training_data
from tests.tools.runs import TINY, tiny_data
from utils.config import check_config
from utils.episodes.batches import episodes_from_arrays
from utils.errors import ConfigError

CONFIG = check_config(TINY, "test")
CPU = torch.device("cpu")
GENERATOR = np.random.default_rng(1)
IMAGES = GENERATOR.integers(0, 256, (45, 10, 10), dtype=np.uint8)
LABELS = np.repeat([f"class {rank}" for rank in range(9)], 5)


class PairDataset:
    """Like torchvision's: no array, but a length and items of (image, label)."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def task(seed, n_query=3):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (3 + n_query, 10, 10), dtype=np.uint8)
    return images[:3], ["a", "b", "c"], images[3:], (["a", "b", "c"] * n_query)[:n_query]


class TaskDataset(torch.utils.data.Dataset):
    """Like the MiniImagenet class of MAML-Pytorch: item i is a task of float tensors, normalised, and int64 labels."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        support_images, _, query_images, _ = task(index)
        support_images, query_images = (
            torch.from_numpy(x).float()[:, None] / 50 - 2 for x in (support_images, query_images)
        )
        return support_images, torch.tensor([2, 0, 1]), query_images, torch.tensor([2, 0, 1])


def test_a_dataset_whose_items_are_tasks_is_the_list_of_them():
    dataset = TaskDataset()
    listed = [dataset[index] for index in range(8)]
    for form in (dataset, torch.utils.data.Subset(dataset, range(8))):
        data, expected = (training_data(given, None, CONFIG, CPU) for given in (form, listed))
        assert (data.count("train"), data.count("val")) == (6, 2)
        for split in ("train", "val"):
            for name in ("support_images", "support_labels", "query_images", "query_labels"):
                found, wanted = (getattr(of.episodes(split, [0, 7]), name) for of in (data, expected))
                assert torch.equal(found, wanted)
    assert first_image_shape(dataset, None) == (1, 10, 10)
    measured = evaluation_data(dataset, CONFIG, CPU).episodes("test", [7])
    assert torch.equal(measured.query_images[0], listed[7][2]) and measured.query_labels.tolist() == [[2, 0, 1]]
    with pytest.raises(InputError, match="dataset and val are of two kinds, tasks and images"):
        training_data(dataset, (IMAGES, LABELS), CONFIG, CPU)


def test_arrays_and_a_dataset_of_pairs_give_the_same_episodes():
    forms = [
        (IMAGES, LABELS),
        PairDataset(IMAGES, LABELS),
        PairDataset(
            torch.from_numpy(IMAGES).float()[:, None] / 255, LABELS.tolist()
        ),  # as torchvision's ToTensor gives them
    ]
    batches = [training_data(form, None, CONFIG, CPU).episodes("train", range(4)) for form in forms]
    for batch in batches[1:]:
        assert torch.equal(batch.support_images, batches[0].support_images)
        assert torch.equal(batch.query_images, batches[0].query_images)
    assert [first_image_shape(form, None) for form in forms] == [(1, 10, 10)] * 3


def test_classes_are_kept_for_validation_and_never_trained_on():
    data = training_data((IMAGES, LABELS), None, CONFIG, CPU)
    names = data.class_names
    assert len(names["val"]) == 3
    assert len(names["train"]) == 6
    assert not set(names["val"]) & set(names["train"])
    given = training_data((IMAGES[:25], LABELS[:25]), (IMAGES[25:], LABELS[25:]), CONFIG, CPU)
    assert set(given.class_names["val"]) == {f"class {rank}" for rank in range(5, 9)}


def test_too_few_classes_are_validated_on_themselves_with_a_note(caplog):
    caplog.set_level("INFO")
    data = training_data((IMAGES[:20], LABELS[:20]), None, CONFIG, CPU)
    assert data.class_names["train"] == data.class_names["val"]
    assert "4 classes are too few to keep 3 for validation" in caplog.text


def test_a_list_of_tasks_comes_round_and_an_iterator_is_read_once():
    tasks = [task(seed) for seed in range(5)]
    data = TaskEpisodes({"train": tasks}, CONFIG, CPU)
    assert torch.equal(data.episodes("train", [1]).support_images, data.episodes("train", [6]).support_images)
    stream = TaskEpisodes({"train": iter(tasks)}, CONFIG, CPU)
    assert torch.equal(stream.episodes("train", [0, 1]).query_images, data.episodes("train", [0, 1]).query_images)
    assert torch.equal(
        stream.episodes("train", [0, 1]).query_images, data.episodes("train", [0, 1]).query_images
    )  # once more
    with pytest.raises(InputError, match="the iterator of tasks ended after 5; training asks for task 6"):
        stream.episodes("train", [5])


def test_the_labels_of_a_task_are_its_own():
    data = TaskEpisodes({"train": [(IMAGES[:3], [30, 10, 20], IMAGES[3:5], [20, 30])]}, CONFIG, CPU)
    batch = data.episodes("train", [0])
    assert batch.support_labels.tolist() == [[2, 0, 1]]
    assert batch.query_labels.tolist() == [[1, 2]]
    assert batch.n_way == 3


@pytest.mark.parametrize(
    "form", ["arrays", "pairs", "tasks", "dataset of tasks", "iterator", "few-shot data", "folder"]
)
def test_meta_fit_and_accuracy_take_every_form(form, tiny_dataset):
    parameters = {name: value for name, value in TINY.items() if name != "experiment_name"} | {
        "total_epochs": 1,
        "image_channels": 1,
    }
    forms = {
        "arrays": lambda: (IMAGES, LABELS),
        "pairs": lambda: PairDataset(IMAGES, LABELS),
        "tasks": lambda: [task(seed) for seed in range(8)],
        "dataset of tasks": TaskDataset,
        "iterator": lambda: (task(seed) for seed in range(20)),
        "few-shot data": lambda: tiny_data(CONFIG),
        "folder": lambda: tiny_dataset("my photos", pre_split=True, side=10),
    }
    if form == "folder":
        parameters |= {
            "sets_are_pre_split": True,
            "indexes_of_folders_indicating_class": (-3, -2),
            "num_dataprovider_workers": 0,
        }
    dataset = forms[form]()
    learned = FewShotClassifier(**parameters).meta_fit(dataset)
    measured = learned.accuracy(dataset if form == "folder" else forms[form](), n_tasks=4)
    assert 0 <= measured.mean <= 1
    assert measured.n_tasks == 4


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ((IMAGES[:10], LABELS[:10]), "train: 2 classes, but a task needs 3"),
        (
            (IMAGES[:42], LABELS[:42]),
            '"class 8" has 2; lower num_target_samples|1 classes have fewer than the 3 images',
        ),
        (
            (IMAGES.astype(float), LABELS),
            "images are numbers from 0 to 255; give uint8 from 0 to 255 or floats from 0 to 1",
        ),
        ((IMAGES, LABELS[:7]), "45 images, but 7 labels"),
        ((np.ma.masked_equal(IMAGES, IMAGES.max()), LABELS), "images hold masked values"),
        (PairDataset(np.ma.masked_equal(IMAGES, IMAGES.max()), LABELS), "images hold masked values"),
        (7, "a int is no dataset"),
        ([], "the list of tasks or images is empty"),
        (
            [(IMAGES[0], 1, 2)],
            r"item 0 of the list is a tuple of 3; items are \(image, label\), or a task: \(support_im",
        ),
        ([{"train": 1, "test": 2}], "item 0 of the list is a dict of 2; items are"),
        ({"a": IMAGES}, "the dict has no item 0; items are"),
        (PairDataset([], []), "the PairDataset of tasks or images is empty"),
        ([task(0)], "one task cannot be divided"),
    ],
)
def test_datasets_that_cannot_work_say_why(dataset, message):
    with pytest.raises(InputError, match=message):
        training_data(dataset, None, CONFIG, CPU)


def test_a_split_too_small_for_ways_of_its_own_names_their_key():
    config = CONFIG.model_copy(update={"head": "prototypes", "val_num_classes_per_set": 9})
    with pytest.raises(InputError, match=r"val: 8 classes, but a task needs 9; lower val_num_classes_per_set or give"):
        training_data((IMAGES, LABELS), (IMAGES[:40], LABELS[:40]), config, CPU)
    config = CONFIG.model_copy(update={"test_num_target_samples": 9})
    with pytest.raises(
        InputError, match=r"the 10 images that test_num_samples_per_class \+ test_num_target_samples need"
    ):
        evaluation_data((IMAGES, LABELS), config, CPU)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            [task(0), task(1, n_query=2)],
            r"tasks of one meta-batch have \[\(3, 2\), \(3, 3\)\] support and query images",
        ),
        ([task(0), (IMAGES[:3], [0, 1, 1], IMAGES[:3], [0, 1, 1])], r"tasks of one meta-batch have \[2, 3\] classes"),
        ([(IMAGES[:3], [0, 1, 2], IMAGES[:1], [5])], "test, task 0: query label 5 has no support image"),
        ([(IMAGES[:3], [0, 1], IMAGES[:1], [0])], "test, task 0: 3 images, but 2 labels"),
    ],
)
def test_tasks_that_cannot_work_say_why(tasks, message):
    with pytest.raises(InputError, match=message):
        evaluation_data(tasks, CONFIG, CPU).episodes("test", range(len(tasks)))


def test_episodes_of_masked_arrays_are_refused():
    images, labels = np.ones((1, 2, 1, 4, 4)), np.array([[0, 1]])
    with pytest.raises(ConfigError, match="episodes_from_arrays: query images hold masked values; fill them"):
        episodes_from_arrays(images, labels, np.ma.masked_equal(images, 1), labels)


def test_tasks_that_come_without_names_of_classes_are_looked_at_without_examples():
    classifier = FewShotClassifier(
        image_height=10,
        image_width=10,
        num_stages=2,
        cnn_num_filters=3,
        num_classes_per_set=3,
        batch_size=2,
        total_epochs=1,
        total_iter_per_epoch=1,
        num_evaluation_tasks=2,
        diagnostics_every_epochs=1,
    )
    assert classifier.meta_fit([task(seed) for seed in range(10)]).initialisation_


def test_a_list_of_tasks_is_validated_on_each_of_those_that_are_kept_once(monkeypatch):
    """Otherwise the interval would be that of as many tasks as num_evaluation_tasks says."""
    asked = []
    episodes = TaskEpisodes.episodes

    def listens(self, split, indices, shape=None):
        asked.extend(indices if split == "val" else ())
        return episodes(self, split, indices, shape)

    monkeypatch.setattr(TaskEpisodes, "episodes", listens)
    classifier = FewShotClassifier(
        image_height=10,
        image_width=10,
        num_stages=2,
        cnn_num_filters=3,
        num_classes_per_set=3,
        batch_size=2,
        total_epochs=1,
        total_iter_per_epoch=1,
        num_evaluation_tasks=7,
    )
    classifier.meta_fit([task(seed) for seed in range(15)])
    assert asked == [0, 1, 2]
