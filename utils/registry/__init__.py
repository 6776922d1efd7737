"""What a config may name: networks, datasets, and the pieces of a method. One function registers each kind, for our own
files (those of `meta_learning`, read by `utils.registry.choices`) and for plugin files alike (docs/own_method.md).

No torch.
"""

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from utils.errors import ConfigError, UserError, user_error
from utils.machine.failures import is_out_of_memory
from utils.machine.host import tune_host
from utils.paths import PACKAGE, REPOSITORY_ROOT, expanded
from utils.registry import choices
from utils.registry.choices import Key

BUILT_IN_BACKBONES: dict[str, frozenset[str]] = {
    "vgg": frozenset({
        "num_stages", "cnn_blocks_per_stage", "cnn_num_filters", "conv_padding", "max_pooling", "warp_kernel_size",
        "feature_scale",
    }),
    "conv4": frozenset({"cnn_num_filters", "warp_kernel_size", "feature_scale"}),
    "mlp": frozenset({"mlp_hidden_sizes"}),
    **dict.fromkeys(
        ("resnet10", "resnet10_wide", "resnet12", "resnet12_wide", "resnet18", "resnet34", "resnet50"), frozenset()
    ),
}  # fmt: skip
"""Name -> the keys that it reads and not all networks do. `meta_neural_network_architectures.BACKBONES` builds them."""

GIVEN_NETWORK = "given_network"
"""What the key `backbone` says where a Python program hands over the network itself, as FewShotClassifier does."""

Made = TypeVar("Made")
Make = Callable[..., Any]
Keys = Mapping[str, Key] | None
Reads = Mapping[str, str] | None

_backbones: dict[str, Callable[..., Any]] = {}
_datasets: dict[str, Callable[..., Any]] = {}
_plugins: dict[str, str] = {}  # "name.py:sha256" -> path of the files that this process has executed
_files: set[str] = set()  # of plugins that were begun
_NAME = re.compile(r"[A-Za-z0-9_+=,.\-]{1,80}")


def register_backbone(name: str, build: Callable[..., Any]) -> None:
    """Make a network known as a value of the key `backbone`; for plugin files (docs/backbones.md).

        >>> from mamlkit import register_backbone
        >>> from torch import nn
        >>> register_backbone("one_layer", lambda config, image_shape, n_way: nn.Sequential(
        ...     nn.Flatten(), nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], n_way)))

    Args:
        build: called as build(config, image_shape, n_way), with image_shape = (C, H, W), or what `input_shape` says;
            returns any `torch.nn.Module` that turns images (n, C, H, W) into logits (n, n_way), its last operation
            being a linear layer.
    Raises:
        ConfigError: the name is taken or has other characters, or `build` cannot be called.
    """
    _register(_backbones, "backbone", name, build, taken=(*BUILT_IN_BACKBONES, GIVEN_NETWORK))


def register_dataset(name: str, build: Callable[..., Any]) -> None:
    """Make a dataset known as a value of the key `dataset_name`; for plugin files (docs/backbones.md).

        >>> import numpy as np
        >>> from mamlkit import register_dataset
        >>> register_dataset("grey", lambda config: {split: {
        ...     f"{split}_{shade}": np.full((20, 14, 14), shade, np.uint8) for shade in range(5)
        ... } for split in ("train", "val", "test")})

    Args:
        build: called as build(config); returns {"train": {class name: images}, "val": ..., "test": ...}, the images
            of a class a uint8 array (n, H, W) or (n, H, W, C) of the size that the config says. With the key
            `input_shape` a class is what that says: an array (n, ...) of any numbers, or a dict or tuple of them; in a
            regression a pair of it and the targets (n, D), and what is called a class is a task.
    Raises:
        ConfigError: the name is taken or has other characters, or `build` cannot be called.
    """
    _register(_datasets, "dataset", name, build)


def register_inner_loop_optimizer(
    name: str, make: Make, *, keys: Keys = None, reads: Reads = None, meaning: str = ""
) -> None:
    """Make an update rule known as a value of the key `inner_loop_optimizer` (docs/own_method.md).

        >>> from mamlkit import InnerLoopOptimizer, register_inner_loop_optimizer
        >>> class SignDescent(InnerLoopOptimizer):
        ...     def direction(self, params, gradients, state, step):
        ...         return [gradient.sign() for gradient in gradients], state
        >>> register_inner_loop_optimizer("sign", SignDescent, meaning="the signs of the gradient")

    Args:
        make: called as make(shapes, learning_rate, n_steps, **own, **shared); returns a
            `mamlkit.InnerLoopOptimizer`, as a subclass of it does. Its `nn.Parameter`s are
            meta-learned.
        keys: argument -> `Key`, a config key of its own, which is called <name>_<argument>.
        reads: argument -> another config key that gives its value.
        meaning: one line for --help.
    Raises:
        ConfigError: the name is taken, or an argument is not what it must be. So do the functions below.
    """
    choices.register("inner_loop_optimizer", name, make, keys=keys, reads=reads, meaning=meaning)


def register_head(name: str, make: Make, *, keys: Keys = None, reads: Reads = None, meaning: str = "") -> None:
    """Make a head known as a value of the key `head`: how the last layer starts in an episode (docs/own_method.md).

        >>> from mamlkit import Head, register_head
        >>> class Undecided(Head):
        ...     def make(self, features, labels, n_way):
        ...         weight = features.new_zeros(len(labels), n_way, self.n_features)
        ...         return {"head.weight": weight, "head.bias": weight[..., 0]}
        >>> register_head("undecided", Undecided)

    Args:
        make: called as make(n_features, **own); returns a `mamlkit.Head`.
        keys, reads, meaning: as of `register_inner_loop_optimizer`.
    """
    choices.register("head", name, make, keys=keys, reads=reads, meaning=meaning)


def register_loss(name: str, make: Make, *, keys: Keys = None, reads: Reads = None, meaning: str = "") -> None:
    """Make a task's loss known as a value of the key `loss` (docs/own_method.md).

        >>> from mamlkit import TaskLoss, register_loss
        >>> from torch.nn.functional import one_hot
        >>> class Brier(TaskLoss):
        ...     def losses(self, outputs, labels):
        ...         wrong = outputs.softmax(dim=-1) - one_hot(labels, outputs.shape[-1])
        ...         return wrong.square().sum(dim=-1).mean(dim=-1)
        >>> register_loss("brier", Brier)

    Args:
        make: called as make(**own); returns a `mamlkit.TaskLoss`.
        keys, reads, meaning: as of `register_inner_loop_optimizer`.
    """
    choices.register("loss", name, make, keys=keys, reads=reads, meaning=meaning)


def register_outer_loss(name: str, make: Make, *, keys: Keys = None, reads: Reads = None, meaning: str = "") -> None:
    """Make a loss over tasks and inner steps known as a value of the key `outer_loss` (docs/own_method.md).

        >>> from mamlkit import OuterLoss, register_outer_loss
        >>> class Worst(OuterLoss):
        ...     def forward(self, losses):
        ...         return losses.max()
        >>> register_outer_loss("worst", Worst)

    Args:
        make: called as make(**own); returns a `mamlkit.OuterLoss`.
        keys, reads, meaning: as of `register_inner_loop_optimizer`.
    """
    choices.register("outer_loss", name, make, keys=keys, reads=reads, meaning=meaning)


def register_norm_layer(
    name: str, make: Make, *, keys: Keys = None, reads: Reads = None, meaning: str = "",
    statistics: tuple[str, ...] | None = None,
) -> None:  # fmt: skip
    """Make a norm layer known as a value of the key `norm_layer` (docs/own_method.md).

        >>> from mamlkit import AffineNorm, register_norm_layer
        >>> class NoNorm(AffineNorm):
        ...     def forward(self, x, params=None, n_tasks=1, pass_=None, name=""):
        ...         weight, bias = self.affine(params, n_tasks, pass_, name)
        ...         return x * weight[:, None, None] + bias[:, None, None]
        >>> register_norm_layer("no_norm", lambda shape, norm: NoNorm(shape[0], **norm.affine), statistics=())

    Args:
        make: called as make((F, H, W), norm, **own), norm being a `meta_learning.networks.norms.NormChoice`; returns a
            `mamlkit.MetaNorm`.
        keys, reads, meaning: as of `register_inner_loop_optimizer`.
        statistics: values of `batch_norm_statistics` that mean something for it; None: all.
    """
    if statistics is not None and not (
        isinstance(statistics, tuple) and set(statistics) <= set(choices.choices("batch_norm_statistics"))
    ):
        raise ConfigError(
            f'register_norm_layer("{name}", ...): statistics is {statistics!r}, but must be a tuple of some of '
            f"{', '.join(choices.choices('batch_norm_statistics'))}, or None for all"
        )
    choices.register("norm_layer", name, make, keys=keys, reads=reads, meaning=meaning, statistics=statistics)


def register_adapter_kind(name: str, make: Make, *, keys: Keys = None, reads: Reads = None, meaning: str = "") -> None:
    """Make an adapter known as a value of the key `adapter_kind`: what is adapted beside the layers of a body
    (docs/own_method.md).

        >>> import torch
        >>> from mamlkit import Adapter, register_adapter_kind
        >>> class Gain(Adapter):
        ...     adapts = ("gain",)
        ...     def __init__(self, layer):
        ...         super().__init__()
        ...         self.gain = torch.nn.Parameter(torch.ones(1))
        ...     def forward(self, x, out):
        ...         return self.gain * out
        >>> register_adapter_kind("gain", Gain)

    Args:
        make: a subclass of `mamlkit.Adapter`, called as make(layer, **own) for each layer.
        keys, reads, meaning: as of `register_inner_loop_optimizer`.
    """
    choices.register("adapter_kind", name, make, keys=keys, reads=reads, meaning=meaning)


def register_batch_norm_statistics(name: str, make: Make, *, meaning: str = "") -> None:
    """Make a value of the key `batch_norm_statistics` known (docs/own_method.md).

        >>> from mamlkit import StatisticsChoice, register_batch_norm_statistics
        >>> class OfBothSets(StatisticsChoice):
        ...     query_needs_support = True
        >>> register_batch_norm_statistics("both", OfBothSets)

    Args:
        make: called without arguments; returns a `mamlkit.StatisticsChoice`.
        meaning: one line for --help.
    """
    choices.register("batch_norm_statistics", name, make, meaning=meaning)


def make_chosen(config: object, kind: str, given: Make | Any, wanted: type[Made], *args: Any, **shared: Any) -> Made:
    """Make the value of the config key `kind` with its own arguments, or let `given` make one.

    Args:
        wanted: what it must be.
        args, shared: what all of its kind are given.
    Raises:
        ConfigError: it fails, or makes something else.
    """
    if isinstance(given, wanted):
        return given
    if given is not None:
        return made(kind, choices.GIVEN, wanted, given, *args, **shared)
    chosen = choices.choice(kind, getattr(config, kind))
    if twice := sorted({*shared} & {*chosen.arguments(config)}):
        raise ConfigError(
            f'{kind} "{chosen.name}": {", ".join(twice)} is an argument that all of its kind are given; give '
            "your own key another name"
        )
    return made(kind, chosen.name, wanted, chosen.make, *args, **shared, **chosen.arguments(config))


def made(kind: str, name: str, wanted: type[Made], make: Make, *args: Any, **shared: Any) -> Made:
    """Return what `make` makes.

    Raises:
        ConfigError: it fails, or makes something else than `wanted`.
    """
    with user_code(f'{kind} "{name}"'):
        result = make(*args, **shared)
    if not isinstance(result, wanted):
        raise ConfigError(
            f'{kind} "{name}" makes a {type(result).__name__}, but must make a {wanted.__name__} of {wanted.__module__}'
        )
    return result


def _register(
    table: dict[str, Callable[..., Any]], kind: str, name: str, build: Callable[..., Any], taken: Any = ()
) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"register_{kind}: the name is {name!r}, but must be 1 to 80 letters, digits and _ + = , . -")
    if not callable(build):
        raise ConfigError(
            f'register_{kind}("{name}", ...): the second argument must be a function, not a {type(build).__name__}'
        )
    if name in table or name in taken:
        raise ConfigError(f'register_{kind}: there is a {kind} "{name}" already; give yours another name')
    table[name] = build


def registered_backbone(name: str) -> Callable[..., Any] | None:
    """Return the `build` of a plugin's backbone."""
    return _backbones.get(name)


def plugin_backbones() -> tuple[str, ...]:
    """Return the names of the backbones that plugins have registered."""
    return tuple(_backbones)


def registered_dataset(name: str) -> Callable[..., Any] | None:
    """Return the `build` of a plugin's dataset."""
    return _datasets.get(name)


def loaded_plugins() -> tuple[str, ...]:
    """Return "name.py:sha256" of the plugin files that this process has executed."""
    return tuple(_plugins)


def plugin_path(digest: str) -> str:
    """Return where the file of an entry of `loaded_plugins` is, as it was given."""
    return _plugins[digest]


def unknown_backbone(name: str) -> str | None:
    """Return the text that there is no such backbone, and which one is meant; None: there is."""
    known = [*BUILT_IN_BACKBONES, *_backbones]
    if name in known or name == GIVEN_NETWORK:
        return None
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f'did you mean "{nearest[0]}"? ' if nearest else ""
    return (
        f'"backbone" is "{name}", but must be one of {", ".join(known)}; {advice}A network of your own comes with '
        "--plugin FILE.py on the command line (docs/backbones.md)"
    )


def load_plugins(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Execute the files that `--plugin` names, and put their digests in its place.

    Args:
        overrides: what the command line says, by key.
    Returns:
        the overrides without "plugin" and, where there was one, with "plugin_sha256".
    Raises:
        ConfigError: a file cannot be read, fails or registers nothing.
    """
    overrides = dict(overrides)
    paths = overrides.pop("plugin", None)
    if paths is None:
        return overrides
    tune_host()  # a plugin imports torch
    return overrides | {"plugin_sha256": [_load(path) for path in (paths if isinstance(paths, list) else [paths])]}


def _load(given: Any) -> str:
    path = expanded(str(given))
    if not isinstance(given, str) or path.suffix != ".py" or path.is_fifo():
        raise ConfigError(
            f"command line: --plugin is {given}, but must be the path of a Python file, as in --plugin my_network.py"
        )
    try:
        digest = f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError as error:
        raise ConfigError(
            f"command line: --plugin {path} cannot be read in {Path.cwd()} ({error.strerror}); give the path of a file"
        ) from error
    if digest in loaded_plugins():
        return digest
    before = _n_registered()
    face = REPOSITORY_ROOT / "mamlkit.py"
    if not PACKAGE and getattr(sys.modules.get(face.stem), "__file__", None) != str(face):
        _execute(face, face.stem)  # that of a copy installed beside this checkout would have another registry
    _files.add(str(path.absolute()))
    with user_code(f"--plugin {path}"), names_of_a_checkout():
        try:
            _execute(path, f"plugin_{path.stem}")
        except ConfigError as error:  # of a register function, which does not know where it is called
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _files]
            raise ConfigError(f"--plugin {path}, line {lines[-1] if lines else 1}: {error}") from error
        except ModuleNotFoundError as error:
            if not PACKAGE or not str(error.name).startswith("utils."):
                raise
            raise ConfigError(
                f"--plugin {path} imports {error.name}, but `utils` is a module of your own here. Write: from mamlkit "
                "import register_backbone, Key, ..."
            ) from error
    if _n_registered() == before:
        raise ConfigError(
            f"--plugin {path} registers nothing; it must call register_backbone(name, build), "
            "register_inner_loop_optimizer(name, make) or another such function of mamlkit"
        )
    _plugins[digest] = str(path)
    return digest


def _execute(path: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up
    spec.loader.exec_module(module)


class ServedModules(MetaPathFinder, Loader):
    """Gives our modules for the names that they have in a checkout, where nothing else has these names."""

    def __init__(self) -> None:
        self.served: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where to find a module of ours; None: it is none, or somebody else has one of this name."""
        room = fullname.partition(".")[0]
        is_ours = f"{room}." != PACKAGE and importlib.util.find_spec(PACKAGE + room) is not None
        return ModuleSpec(fullname, self) if is_ours and PathFinder.find_spec(room) is None else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module in the place of an empty one, as `utils.MovedModules` does."""
        self.served.append(module.__name__)
        sys.modules[module.__name__] = importlib.import_module(PACKAGE + module.__name__)


@contextmanager
def names_of_a_checkout() -> Iterator[None]:
    """Serve, inside, `from utils.registry import ...` and the like in an installed copy, as in a checkout."""
    finder = ServedModules()
    if PACKAGE:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if PACKAGE:
            sys.meta_path.remove(finder)
        for name in finder.served:
            sys.modules.pop(name, None)


def is_module(name: str) -> bool:
    """Return whether Python finds a module of this name, which a plugin's file of that name would hide."""
    return importlib.util.find_spec(name) is not None


def _n_registered() -> int:
    return len(_backbones) + len(_datasets) + len(choices.of_plugins())


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def fault_of_plugin(error: BaseException) -> ConfigError | None:
    """Return what a plugin's code has raised in the midst of a run as an error that names the place; None: it has not
    come through such code, or says by itself what to do.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _files]
    if not frames or not isinstance(error, Exception) or user_error(error) or is_out_of_memory(error):
        return None
    return ConfigError(
        f"a plugin fails in {frames[-1].name}: {_said(error)} ({frames[-1].filename}, line {frames[-1].lineno})"
    )


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn what goes wrong inside a user's own code into an error that names the place.

    Raises:
        ConfigError: any exception inside; also sys.exit(), as of an argparse that reads the program's command line.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this function
        frames = [frame for frame in frames if frame.filename in _files] or frames  # not where a library gave up
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        ends = "ends the program, which it must not" if isinstance(error, SystemExit) else "fails"
        raise ConfigError(f"{what} {ends}: {_said(error)}{place}") from error
