"""The choices of a config that are known by name, such as the update rules of the inner loop: ours and plugins'.

A choice is registered by the function of `utils.registry` for its kind, one method per file, whoever brings it. Our own
files are read, not executed, until a choice of theirs is made: they import torch, which takes seconds that a wrong
config should not cost. No torch.
"""

import ast
import importlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT

GIVEN = "given"
"""What a key says where a Python program hands over the object itself, as in FewShotClassifier(head=...)."""
BOUNDS = ("ge", "gt", "le", "lt")


@dataclass(frozen=True, eq=False)
class Key:
    """A config key that a choice brings: a number, true or false, text, or a list of one of these.

        >>> from mamlkit import Key
        >>> Key(1e-8, "Added to the length of a gradient.", gt=0.0).bounds
        {'gt': 0.0}

    Args:
        default: also its type; a list's entries are of the type of the first one.
        meaning: one line for --help and the documentation.
        one_of: the values that it may have; none: any of its type.
        ge, gt, le, lt: bounds of a number, or of each number in a list.
    """

    default: Any
    meaning: str
    one_of: tuple[Any, ...] = ()
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __post_init__(self) -> None:
        values: list[Any] = list(self.default) if isinstance(self.default, list | tuple) else [self.default]
        if not values or not all(type(value) is type(values[0]) for value in values):
            raise ConfigError(f"Key: the default {self.default!r} has no one type; give a value, or a list of one type")
        if not isinstance(values[0], bool | int | float | str):
            raise ConfigError(f"Key: the default {self.default!r} must be a number, true or false, text, or a list")
        if not isinstance(self.meaning, str) or len(self.meaning.split()) < 2:
            raise ConfigError(
                f"Key: the meaning of {self.default!r} is {self.meaning!r}; say in a line what the key does"
            )
        if not isinstance(self.one_of, tuple | list) or any(type(v) is not type(values[0]) for v in self.one_of):
            raise ConfigError(
                f"Key: one_of is {self.one_of!r}, but must be a tuple of values of the type of {self.default!r}"
            )
        if self.one_of and self.default not in self.one_of:
            raise ConfigError(f"Key: the default {self.default!r} is not one of {', '.join(map(repr, self.one_of))}")
        if not all(_keeps(value, name, bound) for value in values for name, bound in self.bounds.items()):
            raise ConfigError(
                f"Key: the default {self.default!r} must be a number within the bounds "
                f"{', '.join(f'{name} = {bound!r}' for name, bound in self.bounds.items())}, numbers of its type"
            )
        if any(isinstance(value, float) and math.isnan(value) for value in values):
            raise ConfigError("Key: the default is nan, which no run can go on with")

    @property
    def bounds(self) -> dict[str, float]:
        """Return the bounds that are given."""
        return {name: getattr(self, name) for name in BOUNDS if getattr(self, name) is not None}


def _keeps(value: Any, name: str, bound: Any) -> bool:
    """Return whether a default is within a bound of its own type."""
    kinds = (int, float) if isinstance(value, float) else (int,)
    if any(isinstance(number, bool) or not isinstance(number, kinds) for number in (value, bound)):
        return False
    return {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}[name](value, bound)


@dataclass(frozen=True, eq=False)
class Choice:
    """A value of a config key that stands for something that is made."""

    kind: str
    """The config key."""
    name: str
    """Its value."""
    keys: Mapping[str, Key] = field(default_factory=dict)
    """Argument -> own key; in a config it is called <name>_<argument>."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Argument -> key of the schema that gives it."""
    meaning: str = ""
    module: str = ""
    """Of ours, where it is registered."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What its class says in plain values, such as `uses_features = True`."""

    def own_keys(self) -> dict[str, str]:
        """Return argument -> config key of the keys that it brings."""
        return {argument: f"{self.name}_{argument}" for argument in self.keys}

    def arguments(self, config: object) -> dict[str, Any]:
        """Return what a config says for its arguments."""
        unknown = [key for key in self.reads.values() if not hasattr(config, key)]
        if unknown:
            raise ConfigError(f'{self.kind} "{self.name}" reads {", ".join(unknown)}, but there is no such config key')
        return {argument: getattr(config, key) for argument, key in {**self.reads, **self.own_keys()}.items()}

    @property
    def make(self) -> Callable[..., Any]:
        """Return what makes it, or is it; a file of ours is executed for it."""
        if self not in _made:
            importlib.import_module(self.module)
        return _made[self]


_chosen: dict[str, dict[str, Choice]] = {}  # kind -> name -> choice of plugins
_made: dict[Choice, Callable[..., Any]] = {}

KINDS = {
    "inner_loop_optimizer": "meta_learning/inner_loop",
    "head": "meta_learning/heads",
    "loss": "meta_learning/losses",
    "outer_loss": "meta_learning/outer_losses",
    "norm_layer": "meta_learning/networks/norms",
    "adapter_kind": "meta_learning/networks/adapters",
    "batch_norm_statistics": "meta_learning/networks/norms",
}
"""Config key -> folder whose files register our own values of it, by register_<key>."""


def choices(kind: str) -> dict[str, Choice]:
    """Return name -> choice, ours first."""
    return {**_built_in()[kind], **_chosen.get(kind, {})}


def choice(kind: str, name: str) -> Choice:
    """Return one choice.

    Raises:
        ConfigError: there is none of this name.
    """
    found = _built_in()[kind].get(name) or _chosen.get(kind, {}).get(name)
    if found is None:
        problem = f"must be one of {', '.join(choices(kind))}"
        if name == GIVEN:
            problem = "stands for an object that a Python program gave; give it again"
        raise ConfigError(f'"{kind}" is "{name}", which {problem}')
    return found


def fact(kind: str, name: Any, what: str, otherwise: Any) -> Any:
    """Return what a choice's class says of itself; `otherwise` where it says nothing, or is given as an object."""
    found = choices(kind).get(name) if isinstance(name, str) else None
    return otherwise if found is None else found.facts.get(what, otherwise)


def with_own_keys() -> tuple[Choice, ...]:
    """Return every choice that brings keys of its own."""
    return tuple(each for kind in KINDS for each in choices(kind).values() if each.keys)


def of_plugins() -> tuple[Choice, ...]:
    """Return the choices that are not ours."""
    return tuple(each for known in _chosen.values() for each in known.values())


def register(
    kind: str, name: str, make: Any, *, keys: Mapping[str, Key] | None = None, reads: Mapping[str, str] | None = None,
    meaning: str = "", **facts: Any,
) -> None:  # fmt: skip
    """Make a choice known; `utils.registry` has the function for each kind.

    Raises:
        ConfigError: the name is taken, or something is not of the kind that it must be.
    """
    who, keys, reads = f'register_{kind}("{name}", ...)', {} if keys is None else keys, {} if reads is None else reads
    ours = _built_in()[kind].get(name) if isinstance(name, str) else None
    if ours is not None and ours not in _made and getattr(make, "__module__", None) == ours.module:
        _made[ours] = make  # read before, executed now
        return
    if not callable(make):
        raise ConfigError(f"{who}: the second argument must be a class or a function, not a {type(make).__name__}")
    if not _is_word(name) or name == GIVEN:
        raise ConfigError(
            f"register_{kind}: the name is {name!r}, but must be of letters, digits and _, not begin with a digit, and "
            f'not be "{GIVEN}"'
        )
    if name in choices(kind):
        raise ConfigError(f'{who}: there is a {kind} "{name}" already; give yours another name')
    if not (isinstance(keys, Mapping) and all(isinstance(key, Key) and _is_word(word) for word, key in keys.items())):
        raise ConfigError(f"{who}: keys must be a dict, name of an argument -> Key(default, meaning)")
    if not (isinstance(reads, Mapping) and all(_is_word(word) and _is_word(key) for word, key in reads.items())):
        raise ConfigError(f"{who}: reads must be a dict, name of an argument -> config key that gives it")
    for word in keys:
        if word in reads:
            raise ConfigError(f"{who}: the argument {word} is in keys and in reads; leave one out")
        if word.startswith(f"{name}_"):
            raise ConfigError(
                f"{who}: the argument {word} begins with the name; write {word.removeprefix(f'{name}_')}, which a "
                f"config calls {word}"
            )
    if not isinstance(meaning, str):
        raise ConfigError(f"{who}: the meaning is {meaning!r}, but must be a line of text")
    new = Choice(kind, name, keys, reads, meaning, facts=_facts(_attributes(make)) | facts)
    taken = {key: other for other in with_own_keys() for key in other.own_keys().values()}
    for key in new.own_keys().values():
        if key in taken:
            raise ConfigError(f'{who}: the key "{key}" is of {taken[key].kind} {taken[key].name} already; rename one')
    _chosen.setdefault(kind, {})[name] = new
    _made[new] = make


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isidentifier()


def _attributes(make: Any) -> dict[str, Any]:
    """Return what a class says, its bases' words below its own; a function says nothing."""
    bases = reversed(make.__mro__) if isinstance(make, type) else ()
    return {name: value for base in bases for name, value in vars(base).items()}


def _facts(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = bool | int | float | str | tuple
    return {name: value for name, value in values.items() if isinstance(value, plain) and not name.startswith("_")}


# --- our own, read from their files -----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _built_in() -> dict[str, dict[str, Choice]]:
    found: dict[str, dict[str, Choice]] = {kind: {} for kind in KINDS}
    for folder in dict.fromkeys(KINDS.values()):
        for path in sorted((REPOSITORY_ROOT / folder).glob("*.py")):
            for one in _registrations(path, f"{folder}/{path.stem}".replace("/", ".")):
                found[one.kind][one.name] = one
    return found


def _registrations(path: Path, module: str) -> Iterator[Choice]:
    """Yield what a file of ours registers: its calls at the left margin, whose arguments are plain values and `Key`, or
    names of these.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    package = __name__.removesuffix("utils.registry.choices")  # empty, or that of the installed package
    for node in tree.body:
        call = node.value if isinstance(node, ast.Expr) else None
        if not (
            isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id.startswith("register_")
        ):
            continue
        named = {word.arg: _value(constants.get(ast.unparse(word.value), word.value)) for word in call.keywords}
        own = {word: named.pop(word) for word in ("keys", "reads", "meaning") if word in named}
        facts = _plain_values(classes[made.id]) if (made := call.args[1]).id in classes else {}
        kind, name = call.func.id.removeprefix("register_"), _value(call.args[0])
        yield Choice(kind, name, module=package + module, facts=facts | named, **own)


def _value(node: ast.expr) -> Any:
    """Return a plain value, a `Key` of plain values, or a dict of these."""
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Key":
        return Key(
            *map(ast.literal_eval, node.args), **{item.arg: ast.literal_eval(item.value) for item in node.keywords}
        )
    return ast.literal_eval(node)


def _plain_values(node: ast.ClassDef) -> dict[str, Any]:
    """Return the class attributes that are written as plain values."""
    found = {}
    for line in node.body:
        target = line.target if isinstance(line, ast.AnnAssign) else None
        if isinstance(line, ast.Assign) and len(line.targets) == 1:
            target = line.targets[0]
        if isinstance(target, ast.Name) and line.value is not None:
            try:
                found[target.id] = ast.literal_eval(line.value)
            except ValueError:
                continue
    return _facts(found)
