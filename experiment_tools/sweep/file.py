"""A sweep file: which template, which keys are tried with which values, and how. Read, checked and translated;
nothing runs here.

template = "quickstart.json"            # beside this file
method = "tpe"                          # grid, random, or tpe (Optuna)
trials = 20                             # of a grid: all its points, unless fewer are asked for
seed = 0
prune_after_epochs = 2                  # 0: every trial runs to its end

[fixed]                                 # config keys, or variables of the template
total_epochs = 10

[parameters]                            # config keys
meta_learning_rate = { low = 1e-4, high = 1e-2, log = true }
number_of_training_steps_per_iter = { low = 1, high = 5 }
init_inner_loop_learning_rate = [0.1, 0.01]
"""

import difflib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from script_generation_tools.generate_configs import first_config, variables_of
from utils.config import check_config, current_name
from utils.config.messages import unknown_key
from utils.config.schema import fields
from utils.errors import ConfigError
from utils.files.reading import parse_toml, read_text, why_unreadable
from utils.paths import command

METHODS = ("grid", "random", "tpe")
KEYS = ("template", "method", "trials", "seed", "prune_after_epochs", "fixed", "parameters")
RANGE_KEYS = {"low", "high", "log"}
DEFAULT_TRIALS = 20
OWN_KEYS = ("experiment_name", "gpu_to_use", "continue_from_epoch", "test_after_training")
"""Config keys that the sweep itself sets."""


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """Return the value at a share of the way, 0 <= share < 1."""
        return self.values[int(share * len(self.values))]

    def extremes(self) -> tuple[Any, ...]:
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole ones if both are."""

    low: float
    high: float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> Any:
        """Return the value at a share of the way, on a logarithmic way where that is asked for."""
        low, high = (self.low, self.high + 1) if self.is_whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        return min(int(value), self.high) if self.is_whole else float(value)

    def extremes(self) -> tuple[Any, ...]:
        return self.low, self.high


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked."""

    name: str
    text: str
    method: str
    trials: int
    seed: int
    prune_after_epochs: int
    config: dict[str, Any]
    """The config that all trials have in common."""
    parameters: dict[str, Choice | Range]

    def points(self, count: int) -> list[dict[str, Any]]:
        """Return the first points of a grid or a random sweep: the same ones at every call.

        Trial i of a random sweep is a function of the seed and i.
        """
        if self.method == "grid":
            values = (parameter.extremes() for parameter in self.parameters.values())
            return [
                dict(zip(self.parameters, point, strict=True))
                for point in itertools.islice(itertools.product(*values), count)
            ]
        shares = (np.random.default_rng([self.seed, number]).random(len(self.parameters)) for number in range(count))
        return [
            {
                name: parameter.at(float(share))
                for (name, parameter), share in zip(self.parameters.items(), row, strict=True)
            }
            for row in shares
        ]


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        ConfigError: everything that is wrong with it, in one message.
    """
    try:
        text = read_text(path)
        content = parse_toml(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {why_unreadable(error)}; give the path of a sweep file") from error
    problems = _problems(content)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    parameters = {
        current_name(name): Choice(tuple(value)) if isinstance(value, list) else Range(**value)
        for name, value in content["parameters"].items()
    }
    config, trials = _common_config(path, content, parameters), content.get("trials", DEFAULT_TRIALS)
    if content["method"] == "grid":
        grid_size = math.prod(len(parameter.extremes()) for parameter in parameters.values())
        trials = min(content.get("trials", grid_size), grid_size)
    return Sweep(
        path.name.removesuffix(".toml").removesuffix(".sweep"), text, content["method"], trials,
        content.get("seed", 0), content.get("prune_after_epochs", 0), config, parameters,
    )  # fmt: skip


def _problems(content: Mapping[str, Any]) -> list[str]:
    problems = []
    for key in content:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            problems.append(
                f'unknown entry "{key}"'
                + (f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(KEYS)}")
            )
    if content.get("method") not in METHODS:
        problems.append(f'"method" is {json.dumps(content.get("method"))}, but must be one of {", ".join(METHODS)}')
    for key, least in (("trials", 1), ("seed", 0), ("prune_after_epochs", 0)):
        value = content.get(key, least)
        if type(value) is not int or value < least:
            problems.append(f'"{key}" is {json.dumps(value, default=str)}, but must be a whole number >= {least}')
    if not isinstance(content.get("template"), str):
        problems.append('"template" is missing: the name of a template beside this file, such as "quickstart.json"')
    if not isinstance(content.get("fixed", {}), dict):
        problems.append('"fixed" must be a table [fixed] of config keys')
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        problems.append('"parameters" is missing: a table [parameters] of config keys and the values to try')
        return problems
    for name, value in parameters.items():
        if current_name(name) not in fields():
            problems.append(f"[parameters]: {unknown_key(name, list(fields()))}")
        elif name in OWN_KEYS:
            problems.append(f'[parameters]: "{name}" is set by the sweep itself; leave it out')
        elif problem := _parameter_problem(value, content.get("method")):
            problems.append(f'[parameters]: "{name}" {problem}')
    return problems


def _parameter_problem(value: Any, method: Any) -> str | None:
    if isinstance(value, list):
        return None if value else "has no values"
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= RANGE_KEYS:
        return (
            f"is {json.dumps(value, default=str)}, but must be a list of values or {{ low = ..., high = ..., log = "
            "true }"
        )
    numbers = value["low"], value["high"]
    if not all(type(number) in (int, float) for number in numbers) or numbers[0] >= numbers[1]:
        return f"needs numbers with low < high, not {numbers[0]} and {numbers[1]}"
    if value.get("log") and numbers[0] <= 0:
        return f"cannot be logarithmic from {numbers[0]} on; low must be above 0"
    return "is a range, of which a grid cannot try every value; give a list" if method == "grid" else None


def _common_config(path: Path, content: Mapping[str, Any], parameters: Mapping[str, Choice | Range]) -> dict[str, Any]:
    """Return the template's config with what is fixed, checked with each value of each parameter.

    Raises:
        ConfigError: a value that cannot be, or a fixed key that is neither a config key nor a variable of the template.
    """
    template = path.parent / content["template"]
    fixed = dict(content.get("fixed", {}))
    config = first_config(template, {})
    variables = variables_of(template.read_text(encoding="utf-8"))
    if chosen := {name: fixed.pop(name) for name in list(fixed) if name in variables and name not in fields()}:
        config = first_config(template, chosen)
    config = _displaced(config, fixed) | {"experiment_name": "trial", "test_after_training": False}
    check_config(config, f"{path}, [fixed]", overridden=())
    for name, parameter in parameters.items():
        for value in parameter.extremes():
            _check_value(path, config, name, value)
    return config


def _displaced(config: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with these values; other spellings of the same keys make room."""
    names = {current_name(name) for name in values}
    return {name: value for name, value in config.items() if current_name(name) not in names} | dict(values)


def _check_value(path: Path, config: dict[str, Any], name: str, value: Any) -> None:
    """Raise ConfigError when the schema does not take the value; what it may contradict depends on the trial."""
    try:
        check_config(_displaced(config, {name: value}), str(path))
    except ConfigError as error:
        if f'"{name}" is {json.dumps(value)}, but must be' in str(error):
            raise ConfigError(str(error).replace(f"{path}: ", f"{path}: [parameters]: ")) from error


def trial_config(sweep: Sweep, name: str, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of one trial, which ends with its last validation."""
    return _displaced(sweep.config, point) | {"experiment_name": name}


# --- for Weights & Biases ---------------------------------------------------------------------------------------------

WANDB_METHODS = {"grid": "grid", "random": "random", "tpe": "bayes"}


def wandb_yaml(sweep: Sweep, path: Path) -> str:
    """Return the sweep for `wandb sweep`; each of its trials is `python -m experiment_tools.sweep FILE --trial`."""
    parameters: dict[str, Any] = {}
    for name, parameter in sweep.parameters.items():
        if isinstance(parameter, Choice):
            parameters[name] = {"values": list(parameter.values)}
        elif parameter.is_whole:
            parameters[name] = {"distribution": "int_uniform", "min": parameter.low, "max": parameter.high}
        else:
            kind = "log_uniform_values" if parameter.log else "uniform"
            parameters[name] = {"distribution": kind, "min": parameter.low, "max": parameter.high}
    starts = ["${interpreter}" if word == "python" else word for word in command("sweep").split()]
    content: dict[str, Any] = {
        "name": sweep.name,
        "method": WANDB_METHODS[sweep.method],
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "run_cap": sweep.trials,
        "parameters": parameters,
        "command": ["${env}", *starts, str(path), "--trial", "${args}"],
    }
    if sweep.prune_after_epochs:
        content["early_terminate"] = {"type": "hyperband", "min_iter": sweep.prune_after_epochs}
    return "\n".join(_yaml_lines(content, 0)) + "\n"


def _yaml_lines(content: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for key, value in content.items():
        start = f"{'  ' * depth}{key}:"
        if isinstance(value, Mapping):
            lines += [start, *_yaml_lines(value, depth + 1)]
        elif isinstance(value, list):
            lines += [start, *(f"{'  ' * (depth + 1)}- {_yaml_scalar(entry)}" for entry in value)]
        else:
            lines.append(f"{start} {_yaml_scalar(value)}")
    return lines


def _yaml_scalar(value: Any) -> str:
    """Return a scalar as YAML: JSON, but for numbers such as 1e-05, which YAML 1.1 reads as text without a point."""
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text
