"""The classifier gives what the learner gives, keeps scikit-learn's conventions, and refuses what cannot work."""

import copy
import itertools
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from data import NORMALISATIONS
from experiment_parts.evaluation.split_evaluation import evaluate_tasks
from experiment_parts.runs import checkpoints
from few_shot_classifier import FewShotClassifier, InputError, NotFittedError
from few_shot_classifier.arrays import as_input
from few_shot_learning_system import build_learner
from tests.tools.learners import Episodes
from tests.tools.runs import PLUS_PLUS, TINY, run_tiny, tiny_data
from utils.config import check_config
from utils.errors import ConfigError, DataError, StorageError

PARAMETERS = {name: value for name, value in TINY.items() if name != "experiment_name"}
GENERATOR = np.random.default_rng(5)
IMAGES = GENERATOR.integers(0, 256, (6, 10, 10), dtype=np.uint8)
LABELS = np.array(["cat", "ant", "bee", "ant", "bee", "cat"])
QUERIES = GENERATOR.integers(0, 256, (4, 10, 10), dtype=np.uint8)
COLOURS = GENERATOR.integers(0, 256, (45, 10, 10), dtype=np.uint8)


def classifier(**changes):
    """Three ways of tiny images, not meta-learned."""
    return FewShotClassifier(**(PARAMETERS | {"total_epochs": 1} | changes))


def meta_fitted(**changes):
    return classifier(**changes).meta_fit((COLOURS, np.repeat(np.arange(9), 5)))


@pytest.fixture(scope="module")
def learned():
    return meta_fitted(batch_norm_statistics="support")


def one_task(queries=QUERIES) -> Episodes:
    """The images of this file as the episode that the learner is given elsewhere."""
    support_images, query_images = (as_input(x[:, None], NORMALISATIONS["none"])[None] for x in (IMAGES, queries))
    ranks = torch.from_numpy(np.unique(LABELS, return_inverse=True)[1])[None]
    return Episodes(
        support_images,
        ranks,
        query_images,
        torch.zeros((1, len(queries)), dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    )


@pytest.mark.parametrize("statistics", ["transductive", "support", "episodic"])
@pytest.mark.parametrize("head", ["learned", "zero", "prototypes"])
def test_fit_and_predict_are_the_learners_evaluation(statistics, head):
    fitted = classifier(batch_norm_statistics=statistics, head=head).fit(IMAGES, LABELS)
    config = check_config(TINY | {"batch_norm_statistics": statistics, "head": head}, "test")
    evaluation = build_learner(config, "cpu").evaluate(one_task())
    np.testing.assert_allclose(
        fitted.predict_proba(QUERIES), F.softmax(evaluation.query_logits[0], -1).numpy(), atol=1e-5
    )
    assert fitted.predict(QUERIES).tolist() == [["ant", "bee", "cat"][i] for i in evaluation.query_logits[0].argmax(-1)]


def test_every_step_ends_with_the_prediction_and_begins_before_adaptation(learned):
    fitted = learned.clone().fit(IMAGES, LABELS)
    rows = fitted.predict_proba(QUERIES, every_step=True)
    assert rows.shape == (3, 4, 3)  # two steps
    np.testing.assert_array_equal(rows[-1], fitted.predict_proba(QUERIES))
    unadapted = learned.clone().set_params(number_of_evaluation_steps_per_iter=0).fit(IMAGES, LABELS)
    np.testing.assert_allclose(rows[0], unadapted.predict_proba(QUERIES), atol=1e-6)
    assert fitted.predict(QUERIES, every_step=True).shape == (3, 4)


def test_support_statistics_make_each_prediction_its_own_and_transductive_ones_do_not(learned):
    fitted = learned.clone().fit(IMAGES, LABELS)
    one_by_one = np.concatenate([fitted.predict_proba(image[None]) for image in QUERIES])
    np.testing.assert_allclose(one_by_one, fitted.predict_proba(QUERIES), atol=1e-5)
    together = classifier().fit(IMAGES, LABELS)
    one_by_one = np.concatenate([together.predict_proba(image[None]) for image in QUERIES])
    assert np.abs(one_by_one - together.predict_proba(QUERIES)).max() > 1e-3


def test_partial_fit_is_one_fit_with_all_examples(learned):
    parts = learned.clone().fit(IMAGES[:3], LABELS[:3]).partial_fit(IMAGES[3:], LABELS[3:])
    whole = learned.clone().fit(IMAGES, LABELS)
    np.testing.assert_allclose(parts.predict_proba(QUERIES), whole.predict_proba(QUERIES), atol=1e-6)
    assert learned.clone().partial_fit(IMAGES, LABELS).predict(QUERIES).tolist() == whole.predict(QUERIES).tolist()
    with pytest.raises(InputError, match="label 'dog' is not among the classes given"):
        whole.partial_fit(IMAGES[:1], ["dog"], classes=["ant", "bee", "cat"])


def test_a_partial_fit_that_fails_leaves_the_classifier_as_it_was(learned):
    fitted = learned.clone().fit(IMAGES, LABELS)
    before = fitted.predict_proba(QUERIES)
    with pytest.raises(InputError, match="3 outputs, but the episodes have 4 ways"):
        fitted.partial_fit(IMAGES[:1], ["dog"])
    assert fitted.classes_.tolist() == ["ant", "bee", "cat"]
    np.testing.assert_array_equal(fitted.predict_proba(QUERIES), before)


@pytest.mark.parametrize("head", ["zero", "prototypes"])
def test_heads_made_for_the_task_take_any_number_of_classes(head):
    fitted = meta_fitted(head=head).fit(IMAGES, ["a", "b", "c", "d", "d", "a"])
    assert fitted.predict_proba(QUERIES).shape == (4, 4)
    assert fitted.partial_fit(IMAGES[:1], ["e"]).predict_proba(QUERIES).shape == (4, 5)


def test_a_learned_head_names_the_settings_that_take_more_classes(learned):
    with pytest.raises(
        ValueError,
        match=r'trained with "head" "zero" or "prototypes", which take any number .* or with "num_classes_per_set" 4',
    ):
        learned.clone().fit(IMAGES[:4], ["a", "b", "c", "d"])


def test_fewer_classes_than_a_learned_head_has_outputs_share_the_probability_that_these_leave(learned, tmp_path):
    """The inner loop sees all outputs; what is answered is theirs, normalised over the classes that there are."""
    fitted = learned.clone().fit(IMAGES[:2], LABELS[:2])
    logits = replace(fitted.adapted_learner(), n_classes=3).logits(one_task().query_images[0], 2)
    assert logits.shape == (4, 3)
    found = fitted.predict_proba(QUERIES)
    np.testing.assert_allclose(found, F.softmax(logits[:, :2].double(), -1).numpy(), atol=1e-9)
    fitted.save(tmp_path / "two")
    np.testing.assert_array_equal(FewShotClassifier.load(tmp_path / "two").predict_proba(QUERIES), found)
    whole = learned.clone().fit(IMAGES, LABELS)
    grown = fitted.partial_fit(IMAGES[2:3], LABELS[2:3]).partial_fit(IMAGES[3:], LABELS[3:])
    np.testing.assert_allclose(grown.predict_proba(QUERIES), whole.predict_proba(QUERIES), atol=1e-6)


def test_anil_is_one_keyword():
    """Adapting the head alone is a plain linear classifier on features that stay."""
    fitted = classifier(adapted_parameters="head", number_of_evaluation_steps_per_iter=3).fit(IMAGES, LABELS)
    learner = fitted._adapted.learner
    assert list(learner.inner_loop.names) == ["head.weight", "head.bias"]
    weight, bias = (
        getattr(learner.network.head, name).detach().clone().requires_grad_() for name in ("weight", "bias")
    )
    with torch.no_grad():
        support, query = (
            learner.network.features(getattr(one_task(), f"{role}_images"))[0] for role in ("support", "query")
        )
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(support, weight, bias), one_task().support_labels[0]).backward()
        optimizer.step()
    expected = F.softmax(F.linear(query, weight, bias), -1).detach().numpy()
    np.testing.assert_allclose(fitted.predict_proba(QUERIES), expected, atol=1e-4)


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 1, 0, 1, 2],
        [True, False, True, False, True, False],
        np.array(list("cabbca"), dtype=object),
        [9.0, 3.0, 3.0, 9.0, 3.0, 9.0],
    ],
)
def test_labels_of_any_type_come_back_as_they_are(labels):
    fitted = classifier().fit(IMAGES, labels)
    assert fitted.classes_.tolist() == sorted(set(np.asarray(labels).tolist()))
    assert set(fitted.predict(QUERIES).tolist()) <= set(np.asarray(labels).tolist())
    assert fitted.predict(QUERIES).dtype == np.asarray(labels).dtype


def test_tensors_go_in_and_arrays_come_out():
    fitted = classifier().fit(torch.from_numpy(IMAGES)[:, None], torch.tensor([0, 1, 2, 1, 2, 0]))
    assert isinstance(fitted.predict(torch.from_numpy(QUERIES)), np.ndarray)
    assert fitted.score(torch.from_numpy(IMAGES), torch.tensor([0, 1, 2, 1, 2, 0])) >= 0


def test_a_loss_of_ones_own_that_is_cross_entropy_changes_nothing():
    """A function of (logits, labels), for both loops, against the built-in loss."""
    own, built_in = (meta_fitted(loss=loss) for loss in (F.cross_entropy, "cross_entropy"))
    for name, value in built_in.initialisation_.items():
        torch.testing.assert_close(own.initialisation_[name], value)
    np.testing.assert_allclose(
        own.fit(IMAGES, LABELS).predict_proba(QUERIES), built_in.fit(IMAGES, LABELS).predict_proba(QUERIES), atol=1e-5
    )
    other = meta_fitted(loss=torch.nn.CrossEntropyLoss(label_smoothing=0.3))
    assert any(
        not torch.allclose(other.initialisation_[name], value) for name, value in built_in.initialisation_.items()
    )


def own_network(n_outputs=3):
    torch.manual_seed(3)
    layers = (
        torch.nn.Conv2d(1, 4, 3, stride=2),
        torch.nn.BatchNorm2d(4),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(64, n_outputs),
    )
    return torch.nn.Sequential(*layers)


def test_a_network_of_ones_own_adapts_as_plain_torch_does():
    """Two steps of torch.optim.SGD on everything but the norm, whose statistics are those of the batch in training
    mode.
    """
    module = own_network()
    expected = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(
        [value for name, value in expected.named_parameters() if not name.startswith("1.")], lr=0.1
    )
    task = one_task()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(expected(task.support_images[0]), task.support_labels[0]).backward()
        optimizer.step()
    probabilities = F.softmax(expected(task.query_images[0]), -1).detach().numpy()
    fitted = classifier(network=module).fit(IMAGES, LABELS)
    np.testing.assert_allclose(fitted.predict_proba(QUERIES), probabilities, atol=1e-5)


def test_a_network_of_ones_own_is_meta_learned_saved_and_cloned(tmp_path):
    module = own_network()
    before = copy.deepcopy(module.state_dict())
    learned = meta_fitted(network=module).fit(IMAGES, LABELS)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())  # it is copied
    learned.save(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"was saved with a network of its own; give it: load\(path, network=...\)"):
        FewShotClassifier.load(tmp_path / "a")
    for other in (FewShotClassifier.load(tmp_path / "a", network=own_network()), learned.clone().fit(IMAGES, LABELS)):
        np.testing.assert_allclose(other.predict_proba(QUERIES), learned.predict_proba(QUERIES), atol=1e-6)


def test_a_function_makes_the_network_for_the_number_of_classes():
    fitted = classifier(network=lambda config, image_shape, n_way: own_network(n_way)).fit(
        IMAGES, ["a", "b", "c", "d", "a", "b"]
    )
    assert fitted.predict_proba(QUERIES).shape == (4, 4)


def test_a_backbone_is_named_by_network_as_by_its_key():
    larger = np.pad(IMAGES, ((0, 0), (3, 3), (3, 3)))
    shared = {"num_classes_per_set": 3, "cnn_num_filters": 4}
    by_network, by_key = (
        FewShotClassifier(**{key: "conv4"}, **shared).fit(larger, LABELS).predict_proba(larger)
        for key in ("network", "backbone")
    )
    np.testing.assert_array_equal(by_network, by_key)


def test_meta_fit_is_the_run_of_the_scripts(tmp_path, monkeypatch):
    """The same data and keys through `train_maml_system`'s parts give the same weights."""
    config = check_config(TINY, "test")
    path = run_tiny(tmp_path / "scripts")
    of_script = FewShotClassifier.from_experiment(path)
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "python"))
    here = FewShotClassifier(**PARAMETERS, experiment_name="here").meta_fit(tiny_data(config))
    assert here.initialisation_.keys() == of_script.initialisation_.keys()
    assert all(torch.equal(here.initialisation_[name], value) for name, value in of_script.initialisation_.items())
    assert (tmp_path / "python" / "here" / "logs" / "summary_statistics.csv").is_file()


def test_meta_fit_leaves_the_random_numbers_of_the_user_alone():
    before = torch.get_rng_state()
    meta_fitted(total_iter_per_epoch=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_named_meta_fit_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path))
    data = (COLOURS, np.repeat(np.arange(9), 5))
    first = classifier(experiment_name="named", total_epochs=1).meta_fit(data)
    rows = (tmp_path / "named" / "logs" / "summary_statistics.csv").read_text()
    again = classifier(experiment_name="named", total_epochs=1).meta_fit(data)
    assert all(torch.equal(again.initialisation_[name], value) for name, value in first.initialisation_.items())
    assert (tmp_path / "named" / "logs" / "summary_statistics.csv").read_text() == rows


def tasks_of(seed, n_tasks=6):
    """3-way 1-shot tasks of 8 x 8 pixels, of a seed."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (n_tasks, 2, 3, 8, 8), dtype=np.uint8)
    return [(support, [0, 1, 2], query, [0, 1, 2]) for support, query in images]


class DrawnAnew:
    """A dataset whose tasks are others whenever they are read."""

    def __init__(self):
        self.seeds = itertools.count()

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return tasks_of(next(self.seeds), 1)[0]


ARRAYS = (GENERATOR.integers(0, 256, (45, 8, 8), dtype=np.uint8), np.repeat(np.arange(9), 5))


@pytest.mark.parametrize(
    ("begun_with", "other", "message"),
    [
        (lambda: tasks_of(0), lambda: tasks_of(1), "train: other tasks, 5 before, 5 now"),
        (lambda: tasks_of(0), lambda: tasks_of(0)[:5], "train: other tasks, 5 before, 4 now"),
        (lambda: tasks_of(0), lambda: iter(tasks_of(0)), "train: a list of tasks before, an iterator of tasks now"),
        (lambda: tasks_of(0), lambda: ARRAYS, "val: a list of tasks before, classes of images now"),
        (lambda: ARRAYS, lambda: tasks_of(0), "train: classes of images before, a list of tasks now"),
        (lambda: ARRAYS, lambda: (255 - ARRAYS[0], ARRAYS[1]), "the images themselves: content "),
        (lambda: iter(tasks_of(0)), lambda: iter(tasks_of(1)), None),
        (DrawnAnew, DrawnAnew, None),
    ],
)
def test_a_named_meta_fit_does_not_go_on_with_other_data(begun_with, other, message, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path))

    def meta_fit(data, total_epochs):
        keys = {"backbone": "mlp", "num_classes_per_set": 3, "batch_size": 1, "total_iter_per_epoch": 1}
        size = {
            "image_channels": 1,
            "image_height": 8,
            "image_width": 8,
            "num_target_samples": 1,
            "num_evaluation_tasks": 1,
        }
        return FewShotClassifier(**keys, **size, experiment_name="named", total_epochs=total_epochs).meta_fit(data)

    meta_fit(begun_with(), 1)
    assert "is not checked" not in caplog.text
    if message is None:
        meta_fit(other(), 2)
        assert caplog.text.count("cannot be known again; whether the run goes on with those") == 1
        return
    with pytest.raises(DataError, match="has started with other data, which a started run cannot change") as refused:
        meta_fit(other(), 2)
    assert f"\n  {message}" in str(refused.value)
    assert "cannot be known again" not in caplog.text or "iterator" in message
    assert meta_fit(begun_with(), 2).initialisation_


def test_from_experiment_takes_the_best_epoch_or_the_one_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path))
    path = run_tiny(tmp_path, total_epochs=3)
    config = check_config(TINY | {"total_epochs": 3}, "test")
    scores = {}
    for epoch in ("best", 2, 3):
        loaded = FewShotClassifier.from_experiment("tiny", epoch)
        learner = build_learner(config, "cpu")
        learner.load_state_tensors(loaded.initialisation_, optimizer=False)
        evaluation = evaluate_tasks(learner, tiny_data(config), "val", n_tasks=3, tasks_per_batch=2)
        scores[epoch] = np.mean(evaluation.metrics["query_accuracy"][-1])
    assert scores["best"] == max(scores.values())
    with pytest.raises(ConfigError, match=r"nowhere is no run; experiments in .*: tiny"):
        FewShotClassifier.from_experiment("nowhere")
    with pytest.raises(ConfigError, match="Epochs of this run: "):
        FewShotClassifier.from_experiment(path, 99)


@pytest.mark.parametrize(
    "changes",
    [{}, PLUS_PLUS | {"batch_norm_statistics": "support"}, {"head": "prototypes"}],
    ids=["maml", "maml++", "prototypes"],
)
def test_on_the_runs_own_test_tasks_it_has_the_result_of_the_run_task_by_task(tmp_path, changes):
    """Nothing is lost on the way from the run to Python: the class scores that the run wrote give every task's
    accuracy.
    """
    path = run_tiny(tmp_path, num_evaluation_tasks=12, number_of_ensemble_models=1, **changes)
    summary = json.loads((path / "logs" / "test_summary.json").read_text())
    scores = load_file(path / "logs" / "test_predictions.safetensors")
    answers = scores[f"scores.{summary['protocol']['statistics']}"][0].argmax(-1)
    of_run = (answers == scores["query_labels"]).double().mean(-1)
    measured = FewShotClassifier.from_experiment(path).accuracy(
        tiny_data(check_config(TINY | changes, "test")), n_tasks=12
    )
    assert list(measured.per_task) == pytest.approx(of_run.tolist(), abs=1e-7)
    assert (measured.mean, measured.ci95) == pytest.approx(
        (summary["test_accuracy_mean"], summary["test_accuracy_ci95"]), abs=1e-7
    )


def test_accuracy_is_the_evaluation_of_the_scripts_and_has_their_interval():
    config = check_config(TINY, "test")
    learned = FewShotClassifier(**PARAMETERS | {"total_epochs": 1}).meta_fit(tiny_data(config))
    measured = learned.accuracy(tiny_data(config), n_tasks=7)
    learner = build_learner(config, "cpu")
    learner.load_state_tensors(learned.initialisation_, optimizer=False)
    scores = evaluate_tasks(learner, tiny_data(config), "test", n_tasks=7, tasks_per_batch=2).metrics["query_accuracy"][
        -1
    ]
    assert list(measured.per_task) == pytest.approx(scores)
    assert measured.ci95 == pytest.approx(
        2.4469 * np.std(scores, ddof=1) / np.sqrt(7), rel=1e-3
    )  # Student's t of six degrees
    assert "7 tasks, 2 inner steps, transductive statistics" in str(measured)
    other = learned.accuracy(tiny_data(config), n_tasks=7, n_steps=0, statistics="support")
    assert (other.n_steps, other.statistics) == (0, "support")


def test_a_saved_classifier_predicts_the_same_once_loaded(learned, tmp_path, monkeypatch):
    fitted = learned.clone().fit(IMAGES, LABELS)
    fitted.save(tmp_path / "a.safetensors")
    reads = []
    monkeypatch.setattr(checkpoints, "read_regular", lambda path: reads.append(path) or path.read_bytes())
    loaded = FewShotClassifier.load(tmp_path / "a.safetensors")
    assert reads == [tmp_path / "a.safetensors"]
    np.testing.assert_array_equal(loaded.predict_proba(QUERIES), fitted.predict_proba(QUERIES))
    assert loaded.predict(QUERIES).tolist() == fitted.predict(QUERIES).tolist()
    assert loaded.get_params() == fitted.get_params()
    assert loaded.clone().fit(IMAGES, LABELS).predict(QUERIES).tolist() == fitted.predict(QUERIES).tolist()


def test_what_was_never_meta_learned_can_be_saved_and_what_was_never_fitted_too(learned, tmp_path):
    fitted = classifier().fit(IMAGES, [3, 1, 2, 1, 2, 3])
    fitted.save(tmp_path / "fit")
    np.testing.assert_array_equal(FewShotClassifier.load(tmp_path / "fit").predict(QUERIES), fitted.predict(QUERIES))
    learned.clone().save(tmp_path / "meta")
    loaded = FewShotClassifier.load(tmp_path / "meta")
    with pytest.raises(NotFittedError):
        loaded.predict(QUERIES)
    with pytest.raises(NotFittedError, match="nothing to save yet"):
        classifier().save(tmp_path / "none")


def test_save_replaces_what_it_wrote_and_no_other_file(learned, tmp_path):
    path = tmp_path / "a"
    learned.clone().save(path)
    fitted = learned.clone().fit(IMAGES, LABELS)
    fitted.save(path)
    assert FewShotClassifier.load(path).classes_.tolist() == fitted.classes_.tolist()
    tensors, state = checkpoints.load_checkpoint(path)
    checkpoints.save_checkpoint(path, tensors, {"config": state["config"]})  # as the checkpoint of a run
    for other in (path.read_bytes(), b"the user's notes"):
        path.write_bytes(other)
        with pytest.raises(ConfigError, match="a: is there, not written by save, and stays as it is; give another"):
            fitted.save(path)
        assert path.read_bytes() == other


def test_a_loss_of_ones_own_is_asked_for_when_loading(tmp_path):
    fitted = classifier(loss=F.cross_entropy).fit(IMAGES, LABELS)
    fitted.save(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"was saved with a loss of its own; give it: load\(path, loss=...\)"):
        FewShotClassifier.load(tmp_path / "a")
    loaded = FewShotClassifier.load(tmp_path / "a", loss=F.cross_entropy)
    np.testing.assert_array_equal(loaded.predict(QUERIES), fitted.predict(QUERIES))


def test_a_damaged_file_is_refused(learned, tmp_path):
    learned.clone().save(tmp_path / "a")
    damaged = bytearray((tmp_path / "a").read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "a").write_bytes(damaged)
    with pytest.raises(StorageError, match="damaged, its bytes do not fit its digest"):
        FewShotClassifier.load(tmp_path / "a")


def test_pickling_is_refused_and_copying_is_not(learned):
    fitted = learned.clone().fit(IMAGES, LABELS)
    with pytest.raises(TypeError, match=r"use save\(path\) and load\(path\)"):
        pickle.dumps(fitted)
    np.testing.assert_array_equal(copy.deepcopy(fitted).predict_proba(QUERIES), fitted.predict_proba(QUERIES))


def test_use_before_fit_is_an_error_with_the_next_step():
    for use in (lambda c: c.predict(QUERIES), lambda c: c.predict_proba(QUERIES), lambda c: c.score(QUERIES, [0] * 4)):
        with pytest.raises(NotFittedError, match=r"call fit\(images, labels\)"):
            use(classifier())
    with pytest.raises(
        NotFittedError, match=r"call meta_fit\(dataset\), from_experiment\(name\) or load\(path\) first"
    ):
        classifier().accuracy((IMAGES, LABELS))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS[:5], "6 images, but 5 labels"),
        (IMAGES, ["a"] * 6, "labels hold one class, .*'a'"),
        (IMAGES.astype(float) * np.nan, LABELS, "images hold NaN"),
        (np.stack([IMAGES] * 3, axis=1), LABELS, "images have 3 channels, but the network takes 1"),
        (IMAGES[0, 0], LABELS, "images have 1 axes"),
    ],
)
def test_images_and_labels_that_cannot_work_say_why(learned, images, labels, message):
    with pytest.raises(ValueError, match=message):
        learned.clone().fit(images, labels)


def test_images_of_another_size_are_resized_with_one_line_and_none_of_our_source(learned, caplog, recwarn):
    large = np.repeat(np.repeat(IMAGES, 2, axis=1), 2, axis=2)
    fitted = learned.clone().fit(large, LABELS)
    fitted.predict(large)
    assert caplog.messages == ["images of 20 x 20 pixels are resized to the network's 10 x 10"]
    assert not recwarn.list
    assert fitted.support_images_.shape == (6, 1, 10, 10)


def test_unknown_parameters_name_the_nearest_one():
    with pytest.raises(TypeError, match='has no parameter "num_stage"; did you mean "num_stages"'):
        FewShotClassifier(num_stage=3)
    with pytest.raises(ValueError, match=r"Invalid parameter 'num_stage' .* did you mean .num_stages"):
        FewShotClassifier().set_params(num_stage=3)
    with pytest.raises(ConfigError, match='"num_stages" is 0, but must be'):
        FewShotClassifier(num_stages=0).fit(IMAGES, LABELS)


def test_fixed_inner_rates_can_be_changed_after_meta_learning_and_learned_ones_stay():
    fixed = meta_fitted()
    slow, fast = (
        fixed.clone().set_params(init_inner_loop_learning_rate=rate).fit(IMAGES, LABELS) for rate in (1e-6, 0.1)
    )
    assert np.abs(slow.predict_proba(QUERIES) - fast.predict_proba(QUERIES)).max() > 1e-3
    learned = meta_fitted(learnable_per_layer_per_step_inner_loop_learning_rate=True)
    slow, fast = (
        learned.clone().set_params(init_inner_loop_learning_rate=rate).fit(IMAGES, LABELS) for rate in (1e-6, 0.1)
    )
    np.testing.assert_array_equal(slow.predict_proba(QUERIES), fast.predict_proba(QUERIES))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_tasks": 0}, "accuracy: n_tasks is 0, but must be a whole number from 1 on"),
        ({"n_tasks": -1}, "n_tasks is -1, but"),
        ({"n_tasks": 2.5}, r"n_tasks is 2\.5, but"),
        ({"statistics": ["support"]}, r"accuracy: statistics is \['support'\], but must be one name"),
        ({"statistics": "foo"}, '"test_batch_norm_statistics" is "foo"'),
        ({"n_tasks": 4}, "ended after 3; accuracy asks for task 4: lower n_tasks, or give a list"),
    ],
)
def test_a_measurement_that_cannot_work_says_why(arguments, message):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    classifier = FewShotClassifier(
        backbone="mlp", num_classes_per_set=3, image_height=8, image_width=8, total_epochs=1, total_iter_per_epoch=1,
        num_evaluation_tasks=2, batch_size=1,
    )  # fmt: skip
    task = (images[:3], [0, 1, 2], images[3:], [0, 1, 2])
    classifier.meta_fit([task] * 4)
    with pytest.raises(ConfigError, match=message):
        classifier.accuracy(iter([task] * 3), **arguments)


def test_measuring_and_predicting_change_nothing(learned):
    before = {name: value.clone() for name, value in learned.initialisation_.items()}
    fitted = learned.clone().fit(IMAGES, LABELS)
    first = fitted.predict_proba(QUERIES)
    fitted.accuracy((COLOURS, np.repeat(np.arange(9), 5)), n_tasks=3)
    np.testing.assert_array_equal(fitted.predict_proba(QUERIES), first)
    assert all(torch.equal(learned.initialisation_[name], value) for name, value in before.items())
