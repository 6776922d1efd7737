"""YAML configs of PyTorch-MAML (fmu2): what they become, and what is said about them."""

import copy
import datetime

import pytest

from few_shot_learning_system import build_learner
from script_generation_tools.convert_config import convert_files
from script_generation_tools.fmu2_configs import BLOCKS, convert_fmu2_config
from utils.config import check_config
from utils.errors import ConfigError

EPISODES = {
    "image_size": 84,
    "normalization": True,
    "transform": None,
    "n_batch": 200,
    "n_episode": 4,
    "n_way": 5,
    "n_shot": 1,
    "n_query": 15,
}
REPRODUCE = {
    "dataset": "meta-mini-imagenet",
    "train": {"split": "meta-train", **EPISODES, "normalization": False},
    "val": {"split": "meta-val", **EPISODES, "normalization": False},
    "encoder": "convnet4", "encoder_args": {"bn_args": {"track_running_stats": False}}, "classifier": "logistic",
    "inner_args": {"n_step": 5, "encoder_lr": 0.01, "classifier_lr": 0.01, "first_order": False, "frozen": ["bn"]},
    "optimizer": "adam", "optimizer_args": {"lr": 0.001}, "epoch": 300,
}  # fmt: skip
TEST = {
    "dataset": "meta-mini-imagenet",
    "test": {"split": "meta-test", **EPISODES, "n_batch": 150, "n_query": 1},
    "load": "max-va.pth",
    "inner_args": {"n_step": 10, "encoder_lr": 0.01, "classifier_lr": 0.01, "frozen": ["bn"]},
    "epoch": 1,
}


def changed(config, **changes):
    """A copy with `part__key=value` set inside its parts."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parts, key = path.split("__")
        place = config
        for part in parts:
            place = place[part]
        place[key] = value
    return config


def said(findings, *parts):
    return any(all(part in line for part in parts) for line in findings)


def converted(train, test=None):
    """The checked config of a conversion, and its findings."""
    conversion = convert_fmu2_config(train, test, "old")
    return check_config(conversion.values, "test"), conversion.findings


def test_its_recipe_to_reproduce_the_paper():
    config, findings = converted(REPRODUCE, TEST)
    assert (config.dataset_name, config.normalisation, config.sets_are_pre_split) == (
        "mini_imagenet_full_size",
        "none",
        True,
    )
    assert (config.backbone, config.cnn_num_filters, config.image_height, config.image_channels) == ("conv4", 32, 84, 3)
    assert (config.batch_size, config.total_iter_per_epoch, config.total_epochs) == (4, 200, 300)
    assert (config.meta_optimizer, config.meta_learning_rate_schedule, config.gradient_clamp) == (
        "adam",
        "constant",
        10.0,
    )
    assert (config.batch_norm_statistics, config.enable_inner_loop_optimizable_bn_params) == ("transductive", False)
    assert (config.adapted_parameters, config.frozen_layers, config.head, config.second_order) == (
        "all",
        (),
        "learned",
        True,
    )
    assert (config.number_of_training_steps_per_iter, config.number_of_evaluation_steps_per_iter) == (5, 10)
    assert (config.num_target_samples, config.test_num_target_samples, config.num_evaluation_tasks) == (15, 1, 600)
    assert said(findings, "validation had 800 tasks and the test 600")


def test_its_inductive_template():
    train = changed(
        REPRODUCE,
        encoder_args={"bn_args": {"track_running_stats": True, "episodic": ["conv1", "conv2", "conv3", "conv4"]}},
        inner_args={
            "reset_classifier": True,
            "n_step": 5,
            "encoder_lr": 0.01,
            "classifier_lr": 0.05,
            "momentum": 0.9,
            "weight_decay": 5e-4,
        },
        optimizer="sgd",
        optimizer_args={"lr": 0.01, "weight_decay": 5e-4, "schedule": "step", "milestones": [120, 140]},
    )
    config, _ = converted(train)
    assert (config.head, config.batch_norm_statistics) == ("zero", "episodic")
    assert config.enable_inner_loop_optimizable_bn_params is True  # nothing was frozen, so norms were adapted
    assert (config.inner_loop_momentum, config.inner_loop_weight_decay) == (0.9, 5e-4)
    assert (config.init_inner_loop_learning_rate, config.init_head_inner_loop_learning_rate) == (0.01, 0.05)
    assert (config.meta_momentum, config.meta_weight_decay) == (0.9, 5e-4)  # the momentum stood in the code
    assert (config.meta_learning_rate_schedule, config.meta_learning_rate_milestones) == ("step", (120, 140))


@pytest.mark.parametrize(
    ("changes", "key", "value", "words"),
    [
        (
            {"inner_args__n_step": 0},
            "number_of_training_steps_per_iter",
            5,
            '"inner_args.n_step": 0 had no effect: the code replaced 0',
        ),
        ({"inner_args__encoder_lr": 0}, "init_inner_loop_learning_rate", 0.01, "replaced 0 by its default, 0.01"),
        (
            {"inner_args__reset": True},
            "head",
            "learned",
            '"inner_args.reset": true had no effect: the code has no such key',
        ),
        ({"seed": 3}, "train_seed", 0, '"seed": 3 had no effect'),
        ({"inner_args__frozen": ["bn", "encoder"]}, "adapted_parameters", "head", "every run there had seed 0"),
        ({"inner_args__frozen": ["bn", "classifier"]}, "adapted_parameters", "body", "every run there had seed 0"),
        ({"inner_args__frozen": ["bn", "conv1"]}, "frozen_layers", ("block0.*",), 'is written as "frozen_layers"'),
        ({"inner_args__frozen": ["bn", "layer9"]}, "frozen_layers", (), '"layer9" had no effect'),
        ({"inner_args__first_order": True}, "second_order", False, "every run there had seed 0"),
        ({"encoder": "resnet18"}, "backbone", "resnet10", "one block per stage, which is a ResNet-10"),
        ({"optimizer_args__gamma": 0.5}, "meta_learning_rate_schedule", "constant", "had no effect without milestones"),
        (
            {"optimizer_args": {"lr": 0.1, "schedule": "cosine", "milestones": [100]}},
            "min_learning_rate",
            0.0,
            "ended at the last milestone, 100",
        ),
        (
            {"dataset": "meta-cifar-fs", "train__normalization": True},
            "normalisation",
            "cifar100",
            "could not be built there",
        ),
        (
            {"train__transform": "flip", "val__transform": "flip"},
            "support_augmentation",
            ("flip",),
            '"val.transform": "flip" changed images at',
        ),
        ({"train__val_transform": "color"}, "query_augmentation", ("color",), "every run there had seed 0"),
        (
            {"train__split": "meta-val"},
            "dataset_name",
            "mini_imagenet_full_size",
            "trained on other classes than meta-train",
        ),
        (
            {"encoder_args": {"bn_args": {"track_running_stats": True}}},
            "batch_norm_statistics",
            "running",
            "scored training queries by them",
        ),
        (
            {"encoder_args": {"bn_args": {"track_running_stats": True, "episodic": ["conv1"]}}},
            "batch_norm_statistics",
            ("episodic", "running", "running", "running"),
            "scored training queries by them",
        ),
        (
            {"encoder_args": {"bn_args": {"track_running_stats": False, "episodic": ["conv1"]}}},
            "batch_norm_statistics",
            "transductive",
            "had no effect without track_running_stats",
        ),
        ({"val": None}, "num_evaluation_tasks", 800, "neither validated nor kept a best model"),
        ({"classifier_args": {"temp": 2.0}}, "head", "learned", '"classifier_args.temp": 2.0 scaled the logits'),
        ({"load": "max-va.pth"}, "load_checkpoint", "", '"load": "max-va.pth" is not part of a config here'),
    ],
)
def test_values_that_differed_are_named(changes, key, value, words):
    config, findings = converted(changed(REPRODUCE, **changes))
    assert getattr(config, key) == value
    assert said(findings, words), findings


@pytest.mark.parametrize(
    "encoder", ["convnet4", "wide-convnet4", "resnet12", "wide-resnet12", "resnet18", "wide-resnet18"]
)
def test_every_encoder_is_built_and_its_frozen_blocks_are_the_same(encoder):
    """Of the parameters that stay out of the inner loop, all and only those of the block and the norms."""
    for block in BLOCKS[encoder.removeprefix("wide-")]:
        config, _ = converted(
            changed(REPRODUCE, encoder=encoder, inner_args__frozen=["bn", block], train__image_size=32)
        )
        learner = build_learner(config, "cpu")
        norms = set(learner.network.norm_layers())
        frozen = {
            n
            for n, _ in learner.network.named_parameters()
            if n not in learner.inner_loop.names and n.rsplit(".", 1)[0] not in norms
        }
        here = {"conv1": "block0", "conv2": "block1", "conv3": "block2", "conv4": "block3", "layer0": "conv1"}.get(
            block, block
        )
        assert (
            frozen
            == {
                n
                for n, _ in learner.network.named_parameters()
                if n.startswith(f"{here}.") and n.rsplit(".", 1)[0] not in norms
            }
            != set()
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer_args": None}, '"optimizer_args" is null, but must be: an object'),
        ({"optimizer_args": {"weight_decay": 0.1}}, '"optimizer_args.lr" is missing'),
        ({"encoder": ["x"]}, '"encoder" is ["x"], but must be: a valid string'),
        ({"optimizer_args__milestones": 120}, '"optimizer_args.milestones" is 120, but must be: a valid array'),
        ({"optimizer_args__milestones": [], "optimizer_args__schedule": "cosine"}, '"optimizer_args.milestones" is []'),
        ({"train__n_way": "5"}, '"train.n_way" is "5", but must be: a valid integer'),
        ({"inner_args__frozen": "bn"}, '"inner_args.frozen" is "bn", but must be: a valid array'),
        ({"encoder_args__bn_args": True}, '"encoder_args.bn_args" is true, but must be: an object'),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_key(changes, message):
    with pytest.raises(ConfigError) as error:
        converted(changed(REPRODUCE, **changes))
    assert message in str(error.value)


def test_keys_that_are_missing_and_values_of_the_test_file_are_named():
    with pytest.raises(ConfigError, match=r'^"optimizer" is missing; "optimizer_args" is missing; "epoch" is missing$'):
        converted({"dataset": "meta-mini-imagenet", "train": {}, "encoder": "convnet4"})
    with pytest.raises(ConfigError, match=r'"test: test\.n_query" is 0, but must be: greater than or equal to 1'):
        converted(REPRODUCE, changed(TEST, test__n_query=0))
    _, findings = converted(REPRODUCE | {"made": datetime.date(2020, 1, 1)})
    assert said(findings, '"made": "2020-01-01" had no effect')


def test_what_does_not_exist_is_an_error_with_what_does():
    with pytest.raises(ConfigError, match=r'"encoder" is "vit", but there is "convnet4", "wide-convnet4"'):
        converted(changed(REPRODUCE, encoder="vit"))
    with pytest.raises(ConfigError, match=r'"train.transform" is "blur", but there is "resize"'):
        converted(changed(REPRODUCE, train__transform="blur"))
    with pytest.raises(ConfigError, match='the second YAML has no "test"'):
        converted(REPRODUCE, REPRODUCE)


def test_other_ways_at_test_had_no_effect_with_a_learned_head():
    config, findings = converted(REPRODUCE, changed(TEST, test__n_way=10))
    assert config.test_num_classes_per_set == 5
    assert said(findings, '"test: n_way": 10 had no effect: the head kept the 5 ways of training')
    config, _ = converted(changed(REPRODUCE, inner_args__reset_classifier=True), changed(TEST, test__n_way=10))
    assert config.test_num_classes_per_set == 10


def test_two_files_are_read_and_every_key_is_valid_input(tmp_path):
    yaml = pytest.importorskip("yaml")
    for name, content in (("train.yaml", REPRODUCE), ("test.yaml", TEST)):
        (tmp_path / name).write_text(yaml.safe_dump(content))
    values, _ = convert_files([tmp_path / "train.yaml", tmp_path / "test.yaml"])
    assert check_config(values, "test").experiment_name == "train"
    with pytest.raises(ConfigError, match=r"test\.yaml: this YAML has no"):
        convert_files([tmp_path / "test.yaml"])
