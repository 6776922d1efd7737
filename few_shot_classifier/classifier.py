"""Few-shot learning as an object with `fit` and `predict`, after scikit-learn's conventions.

    classifier = FewShotClassifier(adapted_parameters="head", num_classes_per_set=5)     # any config key is a parameter
    classifier.meta_fit("datasets/my_photos")                       # learn an initialisation from many classes
    classifier.fit(five_images, ["ant", "bee", "cat", "dog", "eel"])    # adapt it to a few examples of new ones
    classifier.predict(more_images)

docs/from_python.md shows more. Letters: n images, N classes, S inner steps, C x H x W pixels.
"""

import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiment_builder import build_experiment
from experiment_parts.evaluation import model_selection
from experiment_parts.evaluation.model_selection import chosen_checkpoint
from experiment_parts.evaluation.split_evaluation import evaluate_tasks
from experiment_parts.runs.checkpoints import load_checkpoint, read_checkpoint_state, save_checkpoint
from experiment_parts.runs.opening import open_run_folder
from experiment_parts.runs.run_folder import RunFolder
from few_shot_classifier.adapted_task import AdaptedLearner, adapt
from few_shot_classifier.arrays import (
    Images,
    InputError,
    class_labels,
    image_arrays,
    network_input,
    say_once,
    warn_of_light_lines,
)
from few_shot_classifier.datasets import evaluation_data, first_image_shape, training_data
from few_shot_classifier.estimator import Estimator, NotFittedError, with_parameters
from few_shot_classifier.parameters import config_of, objects_of, parameters, plain
from few_shot_learning_system import OPTIMIZER_PREFIX, FewShotLearner, build_learner
from utils.config import ExperimentConfig, check_config
from utils.config.schema import fields
from utils.episodes.inputs import Inputs
from utils.episodes.source import EpisodeSource
from utils.errors import ConfigError, StorageError
from utils.files.pretrained import pretrained_file
from utils.machine.devices import choose_device
from utils.metrics import percent, summarise
from utils.paths import experiments_root
from utils.words import counted

IMAGES_AT_ONCE = 256
"""Where an image's prediction does not depend on the other images."""
FIT_PREFIX = "fit."


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracy over tasks, half width of its 95 % interval (Student's t over tasks; None for one task), and the
    protocol.
    """

    mean: float
    ci95: float | None
    n_tasks: int
    n_steps: int
    statistics: str
    per_task: tuple[float, ...]

    def __str__(self) -> str:
        return (
            f"{percent(summarise(self.per_task))} ({self.n_tasks} tasks, {self.n_steps} inner steps, "
            f"{self.statistics} statistics)"
        )


@with_parameters(parameters)
class FewShotClassifier(Estimator):
    """A classifier that learns from a few examples, from an initialisation that was meta-learned on many classes.

    Attributes:
        initialisation_: name -> tensor, what meta-learning has learned; None before `meta_fit`.
        meta_config_: the config that it was learned with, as a dict.
        classes_: (N,) labels of the last `fit`, sorted.
        n_features_in_: numbers per image in that `fit`.
        support_images_: float32 (n, C, H, W), normalised; support_labels_: int64 (n,), ranks in classes_.
    """

    # Meta-learning.

    def meta_fit(self, dataset: Any, val: Any = None) -> "FewShotClassifier":
        """Meta-learn the initialisation, by the builder of the scripts; the epoch with the best validation is kept.

        With the parameter `experiment_name` the run has a folder and goes on where it was interrupted; else it
        leaves none.

        Args:
            dataset: a folder, (images, labels), a dataset of (image, label), tasks, or an `EpisodeSource` such as
                `data.FewShotData`; see `few_shot_classifier.datasets`.
            val: the same kind of thing, with other classes, or None: see `few_shot_classifier.datasets.training_data`.
        Raises:
            ConfigError: parameters that cannot work. DataError, InputError: data that cannot.
        """
        config = config_of(self.get_params(), first_image_shape(dataset, self.image_shape, self._inputs()), None)
        device = choose_device(config.gpu_to_use)
        data = training_data(dataset, val, config, device, self.image_shape)
        config = config.model_copy(update={"num_evaluation_tasks": _at_most(data, "val", config.num_evaluation_tasks)})
        with ExitStack() as stack:
            # Checkpoints hold PyTorch's random state, and a run that is resumed restores it; the user's own stays.
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            learner = self._build(config, None)
            root = (
                experiments_root() if self.experiment_name else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            )
            run_folder = open_run_folder(root, config.experiment_name, config.to_json_dict())
            stack.callback(run_folder.unlock)
            torch.manual_seed(config.initialisation_seed)
            builder = build_experiment(config, learner, data, [], run_folder, device, task_sets=[])  # `accuracy` tests
            builder.run()
            _, tensors = model_selection.load_best(run_folder, builder.rows, 1)[0]
        self._keep_initialisation(tensors, config)
        return self

    def _keep_initialisation(self, tensors: dict[str, Tensor], config: ExperimentConfig) -> None:
        left_out = (OPTIMIZER_PREFIX, "rng.", FIT_PREFIX)
        self.initialisation_ = {name: tensor.cpu() for name, tensor in tensors.items() if not name.startswith(left_out)}
        self.meta_config_ = config.to_json_dict()
        for name in ("classes_", "n_features_in_", "support_images_", "support_labels_", "_adapted", "_config_of_fit"):
            vars(self).pop(name, None)

    def _build(self, config: ExperimentConfig, initialisation: dict[str, Tensor] | None) -> FewShotLearner:
        """Build the learner of a config, with an initialisation that was meta-learned."""
        learner = build_learner(config, choose_device(config.gpu_to_use), **objects_of(self.get_params()))
        if initialisation is not None:
            # Rates that are not learned are those of the config.
            learned = learner.meta_parameters()
            rates = {name: value for name, value in learner.state_tensors().items()
                     if name.startswith("inner_loop.") and name not in learned}  # fmt: skip
            learner.load_state_tensors(initialisation | rates, optimizer=False)
        return learner

    # Adapting and classifying.

    def fit(self, X: Any, y: Any) -> "FewShotClassifier":
        """Adapt to a few labelled images; what an earlier `fit` saw is forgotten.

        Args:
            X: images, as an array, tensor or list: (n, H, W), (n, H, W, C), (n, C, H, W), or flat (n, C*H*W) with
                the parameter `image_shape`. uint8 from 0 to 255, or floats from 0 to 1. With the parameter
                `input_shape` what it says: an array (n, ...), or a dict or tuple of them.
            y: labels (n,), of any type; two classes up to the outputs of a meta-learned head (`num_classes_per_set`),
                any number with `head` zero or prototypes.
        Raises:
            InputError, a ValueError: images or labels that cannot work, or a number of classes that the learned head
                has no outputs for.
        """
        given = self._given(X)
        labels = class_labels(y, len(given.pixels))
        classes, ranks = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            [only] = classes.tolist()
            raise InputError(f"labels hold one class, {only!r}; a classifier needs examples of two or more")
        if self.meta_config_ is not None:
            warn_of_light_lines(given.pixels, self.meta_config_["dataset_name"])
        config = config_of(self.get_params(), given.pixels.shape[1:], self.meta_config_, n_way=len(classes))
        return self._adapt(config, network_input(given.pixels, config), ranks, classes, given.n_features)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "FewShotClassifier":
        """Add examples to those of the last `fit` and adapt to all of them: the same as one `fit` with all.

        Args:
            X, y: as for `fit`; may hold new classes where the head allows them.
            classes: all classes that there will be, as scikit-learn has it: labels of others are refused.
        Raises:
            InputError: as `fit`; a label that is not among `classes`. The classifier is then as it was.
        """
        given = self._given(X)
        labels = class_labels(y, len(given.pixels))
        unknown = set(labels.tolist()) - set(np.asarray(classes).tolist()) if classes is not None else ()
        if unknown:
            raise InputError(
                f"label {next(iter(unknown))!r} is not among the classes given, {np.asarray(classes).tolist()}"
            )
        if not self.__sklearn_is_fitted__():
            return self.fit(X, y)
        self._check_features(given.n_features, flat=given.flat)
        before = self.classes_[self.support_labels_.numpy()]
        all_classes, ranks = np.unique(np.concatenate([before, labels]), return_inverse=True)
        config = self._config_of_fit
        if len(all_classes) != len(self.classes_):
            config = config_of(
                self.get_params(), self.support_images_.shape[1:], self.meta_config_, n_way=len(all_classes)
            )
        support = torch.cat([self.support_images_, network_input(given.pixels, config)])
        return self._adapt(config, support, ranks, all_classes, self.n_features_in_)

    def predict(self, X: Any, *, every_step: bool = False) -> np.ndarray:
        """Return the most probable label of each image, (n,); with `every_step` (S+1, n), row s after s inner steps.

        Images `X` as for `fit`. Raises: NotFittedError before `fit`; InputError for images that cannot work.
        """
        probabilities = self.predict_proba(X, every_step=every_step)
        return self.classes_[probabilities.argmax(axis=-1)]

    def predict_proba(self, X: Any, *, every_step: bool = False) -> np.ndarray:
        """Return class probabilities, (n, N) in the order of `classes_`; with `every_step` (S+1, n, N), row s after
        s inner steps.

        With `batch_norm_statistics` transductive the images of one call are normalised together, so a prediction
        depends on the others; with support, running or episodic it does not.

        Raises:
            NotFittedError: before `fit`.
        """
        self.check_is_fitted()
        given = self._given(X)
        self._check_features(given.n_features, flat=given.flat)
        query = network_input(given.pixels, self._config_of_fit)
        if len(query) < len(self.classes_) and self._adapted.normalises_queries_together:
            say_once(
                f"{counted(len(query), 'image')} in one call, of {len(self.classes_)} classes: with transductive "
                "batch-norm statistics they are normalised together, as the queries of whole tasks were in training, "
                'so a few alone may well come out wrong; set batch_norm_statistics="support" (--statistics support)'
            )
        size = len(query) if self._adapted.depends_on_other_images else IMAGES_AT_ONCE
        last = len(self._adapted.path) - 1
        steps = range(last + 1) if every_step else [last]
        probabilities = np.stack(
            [np.concatenate([self._classify(part, step) for part in query.split(size)]) for step in steps]
        )
        return probabilities if every_step else probabilities[0]

    def adapted_learner(self) -> AdaptedLearner:
        """Return the learner after each inner step of the last `fit`."""
        self.check_is_fitted()
        return self._adapted

    def initial_learner(self) -> FewShotLearner:
        """Return a learner with the meta-learned initialisation, from which `fit` starts."""
        self._check_meta_fitted("initial_learner")
        return self._build(config_of(self.get_params(), None, self.meta_config_), self.initialisation_)

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy, a share from 0 to 1, on images and labels (n,) as for `fit`."""
        predicted = self.predict(X)
        return float(np.mean(predicted == class_labels(y, len(predicted))))

    def _given(self, X: Any) -> Images:
        """Bring images, or other examples, into one form."""
        return image_arrays(X, channels=self._channels(), image_shape=self.image_shape, inputs=self._inputs())

    def _inputs(self) -> Inputs | None:
        shape = self.input_shape or (self.meta_config_ or {}).get("input_shape")
        try:
            return Inputs.of(tuple(shape)) if shape else None
        except (ValueError, TypeError) as error:
            raise ConfigError(f'FewShotClassifier: "input_shape" is {shape!r}, but must be {error}') from error

    def _channels(self) -> int | None:
        if self.image_channels is not None:
            return int(self.image_channels)
        return self.meta_config_["image_channels"] if self.meta_config_ else None

    def _check_features(self, n_features: int, *, flat: bool) -> None:
        if flat and n_features != self.n_features_in_:
            raise InputError(
                f"X has {n_features} features, but FewShotClassifier is expecting {self.n_features_in_} features as "
                "input."
            )

    def _adapt(
        self, config: ExperimentConfig, images: Tensor, ranks: np.ndarray, classes: np.ndarray, n_features: int, *,
        initialisation: dict[str, Tensor] | None = None,
    ) -> "FewShotClassifier":  # fmt: skip
        """Adapt to a support set, and only then remember it: after an error everything is as before."""
        learner = self._build(config, self.initialisation_ if initialisation is None else initialisation)
        labels = torch.from_numpy(ranks.astype(np.int64))
        try:
            adapted = adapt(learner, images, labels, len(classes))
        except ConfigError as error:  # a learned head of fewer classes
            raise InputError(str(error)) from error
        self._adapted, self._config_of_fit = adapted, config
        self.support_images_, self.support_labels_, self.classes_, self.n_features_in_ = (
            images,
            labels,
            classes,
            n_features,
        )
        return self

    def _classify(self, query: Tensor, step: int) -> np.ndarray:
        """Return probabilities (n, N) after `step` inner steps."""
        logits = self._adapted.logits(query, step).double()
        if self._config_of_fit.loss == "binary_cross_entropy":
            independent = torch.sigmoid(logits)
            return (independent / independent.sum(-1, keepdim=True).clamp(min=1e-300)).cpu().numpy()
        return torch.softmax(logits, -1).cpu().numpy()

    # Measuring.

    def accuracy(
        self, test_dataset: Any, n_tasks: int = 600, n_steps: int | None = None, statistics: str | None = None
    ) -> Accuracy:
        """Measure the meta-learned initialisation on tasks of classes that it has not seen. Changes nothing.

        Args:
            test_dataset: as for `meta_fit`; of a folder, its test classes. Tasks have the ways, shots and queries of
                the parameters `test_num_classes_per_set`, `test_num_samples_per_class`, `test_num_target_samples`,
                or those of training.
            n_tasks: how many; of a list of tasks at most those that there are.
            n_steps: inner steps; None: `number_of_evaluation_steps_per_iter`.
            statistics: batch-norm statistics; None: those of training.
        Raises:
            NotFittedError: nothing was meta-learned. ConfigError, DataError, InputError: parameters or data that
                cannot work.
        """
        self._check_meta_fitted("accuracy")
        if isinstance(n_tasks, bool) or not isinstance(n_tasks, int | np.integer) or n_tasks < 1:
            raise ConfigError(f"accuracy: n_tasks is {n_tasks!r}, but must be a whole number from 1 on")
        if not isinstance(statistics, str | None):
            raise ConfigError(f"accuracy: statistics is {statistics!r}, but must be one name; call it once for each")
        changes: dict[str, Any] = {} if n_steps is None else {"number_of_evaluation_steps_per_iter": n_steps}
        changes |= {} if statistics is None else {"test_batch_norm_statistics": statistics}  # is it a kind?
        config = config_of(self.get_params(), None, self.meta_config_, **changes)
        learner = self._build(config, self.initialisation_)
        data = evaluation_data(test_dataset, config, choose_device(config.gpu_to_use), self.image_shape)
        n_tasks = _at_most(data, "test", n_tasks)
        evaluation = evaluate_tasks(
            learner,
            data,
            "test",
            n_tasks=n_tasks,
            tasks_per_batch=config.tasks_per_meta_batch,
            statistics=statistics,
            shape=config.test_shapes[0],
        )
        data.check_content()
        scores = tuple(evaluation.metrics["query_accuracy"][-1])
        summary = summarise(scores)
        used = statistics or config.batch_norm_statistics
        return Accuracy(
            summary.mean,
            summary.ci95,
            n_tasks,
            learner.n_evaluation_steps,
            used if isinstance(used, str) else "mixed",
            scores,
        )

    def _check_meta_fitted(self, what: str) -> None:
        if self.initialisation_ is None:
            raise NotFittedError(
                f"{what} needs a meta-learned initialisation: call meta_fit(dataset), from_experiment(name) or "
                "load(path) first"
            )

    # Runs and files.

    @classmethod
    def from_experiment(
        cls, name: str | Path, checkpoint: int | str | Path = "best", **params: Any
    ) -> "FewShotClassifier":
        """Take over what a run of the scripts has learned.

        Args:
            name: of the experiment, or the path of its folder.
            checkpoint: "best" by validation, an epoch, or the path of a file.
            params: parameters that are to be other than the run's.
        Raises:
            ConfigError: no such run or epoch. StorageError: it cannot be read.
        """
        path = run_checkpoint(name, checkpoint)
        return cls._from_checkpoint(path, *load_checkpoint(path), None, params)

    @classmethod
    def from_pretrained(cls, name: str, **params: Any) -> "FewShotClassifier":
        """Take over weights that come with this project: nothing is trained or fetched.

        Args:
            name: as in pretrained/index.json, beside which each has its card.
            params: parameters that are to be other than those of its training.
        Raises:
            ConfigError: no such name. StorageError: the file is not the one that was published.
        """
        path = pretrained_file(name)
        return cls._from_checkpoint(path, *load_checkpoint(path), None, params)

    @classmethod
    def _from_checkpoint(
        cls,
        path: Path,
        tensors: dict[str, Tensor],
        state: dict[str, Any],
        network: nn.Module | None,
        params: dict[str, Any],
    ) -> "FewShotClassifier":
        if "config" not in state:
            raise StorageError(f"{path}: holds no config, so it is no checkpoint of a run")
        config = check_config(state["config"], str(path))
        stored = {name: getattr(config, name) for name in parameters() if name in fields()}
        stored |= {"gpu_to_use": "auto", "experiment_name": None, "network": network}
        classifier = cls(**(stored | params))
        classifier._keep_initialisation(tensors, config)
        return classifier

    def save(self, path: str | Path) -> None:
        """Write parameters, initialisation, and the examples of the last `fit` to one verified file without pickle.

        Args:
            path: of the file; what `save` wrote there before is replaced, another file stays.
        Raises:
            ConfigError: another file is there. NotFittedError: neither `meta_fit` nor `fit` was called.
            StorageError: no space or no permission. TypeError: labels that JSON does not know.
        """
        fitted = self.__sklearn_is_fitted__()
        if self.initialisation_ is None and not fitted:
            raise NotFittedError("there is nothing to save yet: call meta_fit or fit first")
        initialisation = self.initialisation_
        if initialisation is None:
            initialisation = {
                name: value
                for name, value in self._adapted.learner.state_tensors().items()
                if not name.startswith(OPTIMIZER_PREFIX)
            }
        config = self._config_of_fit if fitted else config_of(self.get_params(), None, self.meta_config_)
        objects = objects_of(self.get_params())
        params = {name: plain(value) for name, value in self.get_params().items() if name not in objects}
        state: dict[str, Any] = {
            "config": config.to_json_dict(),
            "classifier": json.loads(json.dumps(params)),
            "meta_config": self.meta_config_,
            "given_as_objects": list(objects),
        }
        tensors = dict(initialisation)
        if fitted:
            tensors |= {f"{FIT_PREFIX}images": self.support_images_, f"{FIT_PREFIX}labels": self.support_labels_}
            state["fit"] = {
                "classes": self.classes_.tolist(),
                "kind": "O" if self.classes_.dtype.hasobject else self.classes_.dtype.str,
                "n_features": self.n_features_in_,
            }
        if os.path.lexists(path) and not _is_saved_classifier(Path(path)):
            raise ConfigError(f"{path}: is there, not written by save, and stays as it is; give another path")
        save_checkpoint(Path(path), tensors, state)

    @classmethod
    def load(cls, path: str | Path, *, network: nn.Module | None = None, **objects: Any) -> "FewShotClassifier":
        """Read what `save` wrote, or any checkpoint of a run.

        Args:
            path: of the file.
            network, objects: the same as when it was saved, such as `loss`, where they were objects: files hold
                numbers, not code.
        Raises:
            ConfigError: an object is asked for and not given. StorageError: the file is damaged, or cannot be read.
        """
        tensors, state = load_checkpoint(Path(path))
        if "classifier" not in state:
            return cls._from_checkpoint(Path(path), tensors, state, network, objects)
        objects |= {} if network is None else {"network": network}
        for name in state["given_as_objects"]:
            if objects.get(name) is None:
                raise ConfigError(f"{path}: was saved with a {name} of its own; give it: load(path, {name}=...)")
        params = {
            name: tuple(value) if isinstance(value, list) else value for name, value in state["classifier"].items()
        }
        classifier = cls(**(params | objects))
        if state["meta_config"] is not None:
            classifier._keep_initialisation(tensors, check_config(state["meta_config"], str(path)))
        if "fit" in state:
            fit = state["fit"]
            classes = np.array(fit["classes"], dtype=np.dtype(fit["kind"]))
            weights = {name: value for name, value in tensors.items() if not name.startswith(FIT_PREFIX)}
            classifier._adapt(
                check_config(state["config"], str(path)),
                tensors[f"{FIT_PREFIX}images"],
                tensors[f"{FIT_PREFIX}labels"].numpy(),
                classes,
                fit["n_features"],
                initialisation=weights,
            )
        return classifier


def run_checkpoint(name: str | Path, checkpoint: int | str | Path = "best") -> Path:
    """Return the file of a run that `FewShotClassifier.from_experiment` reads; its arguments.

    Raises:
        ConfigError: no such run or epoch. StorageError: no checkpoint can be read.
    """
    folder = Path(name) if Path(name).is_dir() else experiments_root() / str(name)
    if not (folder / "config.json").is_file():
        there = ", ".join(sorted(path.parent.name for path in experiments_root().glob("*/config.json"))) or "none"
        raise ConfigError(f"from_experiment: {folder} is no run; experiments in {experiments_root()}: {there}")
    run_folder = RunFolder(folder)
    if checkpoint != "best":
        return chosen_checkpoint(run_folder.saved_models, str(checkpoint))
    newest = run_folder.newest_good_checkpoint()
    if newest is None:
        raise ConfigError(f"{folder}: nothing has been trained yet")
    rows = newest[1]["rows"]
    return run_folder.saved_models / model_selection.load_best(run_folder, rows, 1)[0][0]["file"] if rows else newest[0]


def _at_most(data: EpisodeSource, split: str, n_tasks: int) -> int:
    """Return so many tasks, or those that there are: a list that came round again would seem to be more, and its
    interval too narrow.
    """
    return min(n_tasks, data.count(split) or n_tasks)


def _is_saved_classifier(path: Path) -> bool:
    try:
        return "classifier" in read_checkpoint_state(path)
    except StorageError:
        return False
