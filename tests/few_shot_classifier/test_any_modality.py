"""FewShotClassifier on what is no image, and on task datasets in the forms of other projects."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from few_shot_classifier import FewShotClassifier
from few_shot_classifier.arrays import InputError
from few_shot_classifier.datasets import TaskEpisodes, evaluation_data, training_data
from few_shot_classifier.task_forms import tasks_in
from tests.tools.runs import TINY
from utils.config import check_config
from utils.errors import ConfigError

CPU = torch.device("cpu")
KEYS = {"num_classes_per_set": 3, "num_target_samples": 2, "batch_size": 2, "total_epochs": 1,
        "total_iter_per_epoch": 2, "num_evaluation_tasks": 2, "init_inner_loop_learning_rate": 0.5,
        "number_of_training_steps_per_iter": 3}  # fmt: skip
DRAW = np.random.default_rng(0)
LABELS = np.repeat(np.arange(9), 6)
ROWS = DRAW.standard_normal((54, 4)) / 5 + 2 * DRAW.standard_normal((9, 4))[LABELS]
TABLE = {"input_shape": (4,), "backbone": "mlp", "mlp_hidden_sizes": (16,)}


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words, self.head = nn.Embedding(40, 8), nn.Linear(8, 3)

    def forward(self, ids, mask):
        return self.head((self.words(ids) * mask.unsqueeze(-1)).sum(1))


TEXT = {"input_shape": ("ids:int:5", "mask:bool:5"), "network": Words()}
SENTENCES = {"ids": 4 * LABELS[:, None] + DRAW.integers(0, 4, (54, 5)), "mask": np.arange(5) < 2 + LABELS[:, None] % 3}


@pytest.mark.parametrize("kind", ["table", "text", "torch", "items"])
def test_arrays_are_learned_adapted_to_saved_and_loaded(kind, tmp_path):
    own, examples = (TEXT, SENTENCES) if kind == "text" else (TABLE, ROWS)
    part = (lambda at: {n: v[at] for n, v in SENTENCES.items()}) if kind == "text" else (lambda at: examples[at])
    dataset = (examples, LABELS)
    if kind == "torch":
        dataset, part = (torch.from_numpy(ROWS), torch.from_numpy(LABELS)), lambda at: torch.from_numpy(ROWS[at])
    elif kind == "items":
        dataset = [(row, label) for row, label in zip(ROWS, LABELS, strict=True)]
    classifier = FewShotClassifier(**KEYS, **own).meta_fit(dataset)
    assert 0 <= classifier.accuracy(dataset, n_tasks=3).mean <= 1
    few = [0, 1, 6, 7, 12, 13]
    classifier.fit(part(few), LABELS[few])
    assert classifier.score(part(few), LABELS[few]) == 1
    classifier.save(tmp_path / "saved.safetensors")
    again = FewShotClassifier.load(tmp_path / "saved.safetensors", network=own.get("network"))
    others = part(slice(0, 18))
    assert np.array_equal(again.predict_proba(others), classifier.predict_proba(others))


def test_the_numbers_of_a_table_reach_the_network_unchanged():
    config = check_config(TINY | {"dataset_name": "images"} | TABLE, "test")
    data = training_data((ROWS, LABELS), None, config, CPU)
    batch = data.episodes("train", range(4))
    known = torch.from_numpy(ROWS).float()
    assert all((known == row).all(1).any() for row in batch.support_images.flatten(0, 1))
    assert data.identity()["content_sha256"] and data.as_pixels(batch.support_images) is None


def test_a_source_of_episodes_says_itself_what_its_examples_are():
    config = check_config(TINY | {"dataset_name": "images"} | TABLE, "test")
    source = training_data((ROWS, LABELS), None, config, CPU)
    classifier = FewShotClassifier(**KEYS, backbone="mlp").meta_fit(source)
    assert classifier.meta_config_["input_shape"] == [4]
    assert classifier.fit(ROWS[:12], LABELS[:12]).predict(ROWS[:12]).shape == (12,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ROWS[:, :3], r"what is given is float64 \(54, 3\), but must be an array \(n, 4\) of numbers, as input_shape"),
        ([np.zeros(4), np.zeros(5)], "has examples of 2 shapes, .*; bring sequences to one length and give a mask"),
        (ROWS * np.nan, "holds NaN or infinity"),
        (ROWS * 0 + 1e200, "too large for float32"),
        (np.ma.masked_greater(ROWS, 0), "what is given holds masked values"),
        (ROWS[:0], "minimum of 1 is required"),
    ],
)
def test_arrays_of_another_shape_say_so(given, message):
    with pytest.raises(InputError, match=message):
        FewShotClassifier(**KEYS, **TABLE).fit(given, LABELS[: len(given)])


def test_an_unreadable_shape_and_a_missing_one_say_what_to_write():
    with pytest.raises(ConfigError, match=r'"input_shape" is .*ids:4.*, but must be the sides of one array'):
        FewShotClassifier(**KEYS, input_shape=("ids:4",)).fit(ROWS, LABELS)
    with pytest.raises(InputError, match=r"image_shape=\(C, H, W\), or input_shape=\(4,\) if they are none"):
        FewShotClassifier(**KEYS).fit(ROWS, LABELS)


# --- tasks of other projects ------------------------------------------------------------------------------------------


def numbers(seed, n_way=3, per_class=1):
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.standard_normal((n_way * per_class, 4))).float(), torch.arange(n_way).repeat(per_class)


class MiniImagenet(torch.utils.data.Dataset):
    """MAML-Pytorch's: four tensors an item."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return *numbers(index), *numbers(100 + index, per_class=2)


class TaskDataset:
    """learn2learn's: an item is all of a task, its classes one after the other; `num_tasks` -1: new ones for ever."""

    def __init__(self, num_tasks=8):
        self.num_tasks, self.sampled = num_tasks, 0

    def __len__(self):
        return max(1, self.num_tasks)

    def __getitem__(self, index):
        examples, labels = numbers(index, per_class=3)
        order = labels.argsort(stable=True)
        return examples[order], labels[order]

    def sample(self):
        self.sampled += 1
        return self[self.sampled - 1]


class MetaDataset:
    """torchmeta's: of so many combinations of classes that its length has no meaning, with tasks that are datasets."""

    def __init__(self):
        self.sampled = 0

    def __len__(self):
        raise OverflowError

    def __getitem__(self, classes):
        raise TypeError

    def sample_task(self):
        self.sampled += 1
        halves = numbers(self.sampled - 1), numbers(100 + self.sampled - 1, per_class=2)
        train, test = (torch.utils.data.TensorDataset(*half) for half in halves)
        return OrderedDict(train=train, test=test)


def batches_of_torchmeta():
    for start in range(0, 8, 2):
        halves = {"train": [numbers(start), numbers(start + 1)],
                  "test": [numbers(100 + start, per_class=2), numbers(101 + start, per_class=2)]}  # fmt: skip
        yield {name: tuple(map(torch.stack, zip(*half, strict=True))) for name, half in halves.items()}


FORMS = {
    "MAML-Pytorch": MiniImagenet,
    "MAML-Pytorch, loaded": lambda: torch.utils.data.DataLoader(MiniImagenet(), batch_size=2),
    "torchmeta": MetaDataset,
    "torchmeta, loaded": batches_of_torchmeta,
    "learn2learn": TaskDataset,
    "learn2learn, endless": lambda: TaskDataset(-1),
    "learn2learn, loaded": lambda: torch.utils.data.DataLoader(TaskDataset(), batch_size=2),
}


@pytest.mark.parametrize("form", FORMS)
def test_task_datasets_of_other_projects_give_their_tasks(form):
    config = check_config(TINY | {"dataset_name": "images"} | TABLE, "test")
    batch = evaluation_data(FORMS[form](), config, CPU).episodes("test", [0, 1])
    assert (batch.n_way, batch.n_shot, batch.n_query) == (3, 1, 2)
    for task in range(2):
        if form.startswith("learn2learn"):
            examples, _ = numbers(task, per_class=3)  # class c is rows c, c + 3, c + 6; the first of them is support
            support, query = examples[:3], torch.stack([examples[[c + 3, c + 6]] for c in range(3)]).flatten(0, 1)
        else:
            support, query = numbers(task)[0], numbers(100 + task, per_class=2)[0]
        assert torch.equal(batch.support_images[task], support) and torch.equal(batch.query_images[task], query)


@pytest.mark.parametrize("form", ["MAML-Pytorch, loaded", "torchmeta", "learn2learn, endless"])
def test_meta_fit_and_accuracy_take_them_as_they_are(form):
    classifier = FewShotClassifier(**KEYS | {"total_epochs": 3}, **TABLE).meta_fit(FORMS[form](), FORMS[form]())
    assert classifier.accuracy(FORMS[form](), n_tasks=4).n_tasks == 4


def test_a_task_without_examples_for_the_query_says_so():
    with pytest.raises(
        InputError, match="1 examples of a class for support and query together, but num_samples_per_cl"
    ):
        tasks_in(numbers(0), 1)
    assert tasks_in((np.zeros((3, 8, 8)), 2), 1) is None  # an image and its label


def test_tasks_of_mixed_shapes_say_which_one():
    tasks = [MiniImagenet()[0], (torch.zeros(3, 5), [0, 1, 2], torch.zeros(3, 5), [0, 1, 2])]
    config = check_config(TINY | {"dataset_name": "images"} | TABLE, "test")
    with pytest.raises(
        InputError, match=r"test, task 1: what is given is float32 \(3, 5\), but must be an array \(n, 4\)"
    ):
        TaskEpisodes({"test": tasks}, config, CPU).episodes("test", [0, 1])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("n", "num_classes_per_set"), ("k", "num_samples_per_class"), ("inner_lr", "init_inner_loop_learning_rate"),
     ("num_steps", "number_of_training_steps_per_iter"), ("k_qry", "num_target_samples"), ("update_step_test",
     "number_of_evaluation_steps_per_iter"), ("meta_batch_size", "batch_size"),
     ("num_samples_per_clas", "num_samples_per_class")],
)  # fmt: skip
def test_keywords_of_other_projects_are_answered_with_ours(theirs, ours):
    with pytest.raises(TypeError, match=f'FewShotClassifier has no parameter "{theirs}"; did you mean "{ours}"?'):
        FewShotClassifier(**{theirs: 5})
    with pytest.raises(ValueError, match=f'Invalid parameter .{theirs}.*, did you mean "{ours}"'):
        FewShotClassifier().set_params(**{theirs: 5})
