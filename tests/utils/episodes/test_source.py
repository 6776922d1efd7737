"""What training and testing ask of a source of episodes, and of a learner: everything that is one answers all of it."""

import inspect

import pytest
import torch

from data import FewShotData
from experiment_parts.learner import Learner
from few_shot_classifier.datasets import SplitData, TaskEpisodes, evaluation_data, first_image_shape, training_data
from few_shot_learning_system import FewShotLearner
from tests.tools.runs import TINY, tiny_data
from utils.config import check_config
from utils.data_sources.sinusoid import SinusoidData
from utils.episodes.prefetching import TrainingEpisodes, episodes_in_turn
from utils.episodes.source import EpisodeSource, FixedEpisodeSource

CONFIG = check_config(TINY, "test")
CPU = torch.device("cpu")


def asked_of(protocol):
    """Name -> the parameters of each method of a protocol; None of what is read and not called."""
    members = {name: member for name, member in inspect.getmembers(protocol) if not name.startswith("_")}
    return {
        name: list(inspect.signature(member).parameters) if inspect.isfunction(member) else None
        for name, member in members.items()
    }


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [
        (FixedEpisodeSource, FewShotData), (FixedEpisodeSource, SinusoidData), (EpisodeSource, SplitData),
        (EpisodeSource, TaskEpisodes), (Learner, FewShotLearner),
    ],
)  # fmt: skip
def test_what_is_asked_of_it_is_there_with_the_same_arguments(protocol, kind):
    asked = asked_of(protocol)
    assert len(asked) > 7
    for name, parameters in asked.items():
        own = inspect.getattr_static(kind, name)
        assert parameters is None or list(inspect.signature(own).parameters) == parameters, name


class OwnSource(EpisodeSource):
    """The least that somebody has to write: here episodes of other data, numbered backwards."""

    def __init__(self):
        self.data = tiny_data(CONFIG)
        self.shape = self.data.shape

    @property
    def class_names(self):
        return self.data.class_names

    def episodes(self, split, indices, shape=None):
        return self.data.episodes(split, [99 - index for index in indices], shape)


def test_a_source_of_ones_own_is_used_as_it_is_and_may_be_prepared_ahead():
    source = OwnSource()
    assert training_data(source, None, CONFIG, CPU) is evaluation_data(source, CONFIG, CPU) is source
    assert first_image_shape(source, None) is source.count("train") is None
    assert isinstance(training_data(source, OwnSource(), CONFIG, CPU), SplitData)
    plain = TrainingEpisodes(source, 2).of_iteration(3)
    assert plain.indices == (95, 94)
    source.meta_batches_ahead = 1
    ahead = TrainingEpisodes(source, 2)
    assert torch.equal(ahead.of_iteration(3).support_images, plain.support_images)
    ahead.close()
    (batch,) = episodes_in_turn(source, "val", [range(2)], None, lambda: None)
    assert batch.split == "val" and batch.indices == (99, 98)
    assert source.as_pixels(plain.support_images) is None, "there are no pictures of it"
