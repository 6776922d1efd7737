"""What a config is called: MAML, MAML++, ANIL, ... and by what else two configs of one name differ. Pure functions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.config.changes import FREE_KEYS

SEED_KEYS = ("train_seed", "seed", "val_seed")
TASK_KEYS = ("dataset_name", "num_classes_per_set", "num_samples_per_class", "num_target_samples")
NOT_THE_METHOD = (FREE_KEYS - {"total_epochs"}) | {"experiment_name", *SEED_KEYS, *TASK_KEYS}
"""Keys in which two runs of one method may differ: seeds, tasks, machine."""

MAML_PLUS_PLUS = {
    "use_multi_step_loss_optimization": "multi-step loss",
    "learnable_per_layer_per_step_inner_loop_learning_rate": "learned rates",
    "per_step_bn_statistics": "per-step batch norm",
}
"""The parts of MAML++ that make it that; each alone is a part on top of MAML."""


def method_name(config: Mapping[str, Any]) -> str:
    """Return the name of the field for a config's choices, e.g. 'MAML++', 'ANIL', 'FOMAML, running statistics'.

    A key that a config does not have (it is of an older release) stands for its default.
    """
    head, adapted = config.get("head", "learned"), config.get("adapted_parameters", "all")
    learned_rates = config.get("learnable_inner_loop_learning_rates", "none")
    parts = [text for key, text in MAML_PLUS_PLUS.items() if config.get(key)]
    name = "MAML"
    if head == "prototypes":
        name = "ProtoMAML" if config.get("number_of_training_steps_per_iter", 5) else "ProtoNet"
    elif config.get("outer_update", "gradient") == "displacement":
        name = "Reptile"
    elif adapted != "all":
        name = {"head": "ANIL", "body": "BOIL"}[adapted]
    elif learned_rates != "none":
        name = "Meta-SGD" if learned_rates == "per_element" else "MAML, learned rates"
    elif len(parts) == len(MAML_PLUS_PLUS):
        name, parts = "MAML++", []
    if head == "zero":
        parts.append("zero head")
    if name not in ("ProtoNet", "Reptile") and config.get("second_order") is False:
        name = "FOMAML" if name == "MAML" else f"first-order {name}"
    statistics = config.get("batch_norm_statistics", "transductive")
    if statistics != "transductive":
        parts.append(f"{statistics if isinstance(statistics, str) else '/'.join(statistics)} statistics")
    return ", ".join([name, *parts])


def row_labels(configs: Sequence[Mapping[str, Any]], columns: Sequence[Iterable[Any]]) -> list[str]:
    """Return a label for each config, such that configs with results in one column share it only when they are seeds of
    one method.

    Args:
        configs: of the runs.
        columns: per run, the columns of the table in which it has results.
    """
    names = [method_name(config) for config in configs]
    labels = list(names)
    for name in set(names):
        members = [place for place, other in enumerate(names) if other == name]
        differing: dict[str, None] = {}
        for column in {column for place in members for column in columns[place]}:
            rivals = [configs[place] for place in members if column in columns[place]]
            differing |= dict.fromkeys(differing_keys(rivals))
        for place in members:
            values = [f"{key} {_text(configs[place].get(key))}" for key in differing]
            labels[place] = f"{name} ({', '.join(values)})" if values else name
    return labels


def distinguish_repeats(
    labels: Sequence[str], names: Sequence[str], configs: Sequence[Mapping[str, Any]], columns: Sequence[Iterable[Any]]
) -> list[str]:
    """Return the labels, with the run's name in those where one column would count the same training seed twice.

    A seed that is run again, say on another machine or with other validation tasks, is no second independent run of
    the method.
    """
    n_runs: dict[Any, int] = {}
    for label, config, own in zip(labels, configs, columns, strict=True):
        train_seed, seed = config.get("train_seed"), config.get("seed")
        for column in set(own):
            key = (label, column, train_seed, train_seed if seed is None else seed)
            n_runs[key] = n_runs.get(key, 0) + 1
    repeated = {label for (label, *_), n in n_runs.items() if n > 1}
    return [
        label
        if label not in repeated
        else f"{label[:-1]}, run {name})"
        if label.endswith(")")
        else f"{label} (run {name})"
        for label, name in zip(labels, names, strict=True)
    ]


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of the method that have several values in these configs; a key that one lacks does not count."""
    shared = [key for key in configs[0] if key not in NOT_THE_METHOD and all(key in config for config in configs)]
    return [key for key in shared if any(config[key] != configs[0][key] for config in configs)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
