"""The README.md of an exported network: what it is, how it was measured and what it must not be used for, as model
hubs read it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.known_datasets import known_by_folder
from utils.metrics import ACCURACY

UNKNOWN_LICENCE = "not known to the program that wrote this; fill it in"

STATISTICS = {
    "transductive": (
        "**The examples of one batch are normalised together**, as they were when the run was measured: an answer "
        "depends on the others of its batch. Classify batches that look like the test tasks (all classes, in about "
        "equal parts); single ones come out wrong."
    ),
    "running": "Batch norm uses the run's running statistics of the last inner step; an answer depends on its own "
    "example alone.",
    "support": "Batch norm uses the statistics of the support set, which are stored in the weights; an answer depends "
    "on its own example alone.",
    "episodic": (
        "Batch norm uses a moving average over the inner steps on the support set, which is stored in the weights; an "
        "answer depends on its "
        "own example alone."
    ),
    "mixed": "Each block has its own kind of batch-norm statistics; where one is transductive, the examples of "
    "one batch are normalised together.",
}
OF_INITIALISATION = {
    "running": "Batch norm uses the run's running statistics of the first inner step.",
    "mixed": STATISTICS["mixed"],
}
BEFORE_ADAPTATION = (
    "Batch norm normalises with the batch that it is given, as the inner loop does with a support set; its weights "
    "are those of the first inner step."
)
NO_BATCH = "The network has no batch norm; an answer depends on its own example alone."


@dataclass(frozen=True)
class CardFacts:
    """What a card says that is not in the config."""

    name: str
    files: Mapping[str, float]
    """File -> largest difference from the original on random input."""
    classes: Sequence[str] | None
    """Of the support set; None: the initialisation."""
    support_counts: Sequence[int]
    statistics: str
    uses_batch: bool
    has_head: bool
    has_module: bool
    """Whether network.py builds it; else a plugin's file does."""
    steps: int
    """Inner steps on a support set."""
    epoch: int | None
    test: Mapping[str, Any]
    """logs/test_summary.json; empty: not tested."""
    command: str
    training_command: str
    """One, or a line for each stage."""
    licence: str
    """Of the weights that were exported; empty: their owner has not said."""
    versions: Mapping[str, Any]


Result = tuple[Mapping[str, Any], Mapping[str, Any]]


def tested_results(facts: CardFacts) -> list[Result]:
    """Return protocol and accuracy of the exported epoch alone, for each test of the run with as many steps."""
    results = [
        result for result in facts.test.get("results", [facts.test]) if result.get("score", "accuracy") == "accuracy"
    ]
    pairs = [
        (result["protocol"], model)
        for result in results
        for model in result.get("models", ())
        if model.get("epoch") == facts.epoch
    ]
    return [(protocol, model) for protocol, model in pairs if protocol["steps"] == facts.steps]


def model_card(facts: CardFacts, config: Mapping[str, Any]) -> str:
    """Return the text: a YAML head for model hubs, then Markdown."""
    # The first one with the exported batch-norm statistics; None: not tested so.
    tested = next((pair for pair in tested_results(facts) if pair[0]["statistics"] == facts.statistics), None)
    sections = {
        "Use": _use(facts, config),
        "Data and protocol": _data(facts, config, tested),
        "Limits": _limits(facts, config),
        "Files": [
            "| file | largest difference from the original |",
            "| --- | --- |",
            *(f"| `{file}` | {difference:.1e} |" for file, difference in facts.files.items()),
            "",
            "Compared with the learner that was exported, on batches of several sizes of random examples.",
        ],
        "Made with": [
            "```bash",
            facts.training_command,
            facts.command,
            "```",
            "",
            ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        ],
        "Licences": _licences(facts, config["dataset_name"]),
    }
    lines = [*_head(facts, config, tested), "", f"# {facts.name}", "", _what(facts, config)]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section]
    return "\n".join(lines) + "\n"


def _head(facts: CardFacts, config: Mapping[str, Any], tested: Result | None) -> list[str]:
    """Return the YAML between two lines of dashes."""
    data, task = config["dataset_name"], "other" if config["input_shape"] else "image-classification"
    tags = ("few-shot-learning", "meta-learning", "maml", *(("onnx",) if "network.onnx" in facts.files else ()))
    lines = [
        "---",
        f"license: {facts.licence.lower()}"
        if facts.licence
        else "license: unknown  # fill in under which licence you give the weights away",
        f"pretty_name: {_yaml(facts.name)}",
        "library_name: pytorch",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "datasets:",
        f"- {_yaml(data)}",
        "metrics:",
        "- accuracy",
    ]
    if tested:
        lines += [
            "model-index:",
            f"- name: {_yaml(facts.name)}",
            "  results:",
            "  - task:",
            f"      type: {task}",
            f"      name: {_yaml(_ways(tested[0]) + ' few-shot classification')}",
            "    dataset:",
            f"      type: {_yaml(data)}",
            f"      name: {_yaml(data)}",
            "      split: test",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {100 * tested[1]['test_accuracy_mean']:.2f}",
            f"      name: {_yaml('accuracy in %, mean over ' + str(tested[0]['tasks']) + ' test tasks')}",
        ]
    return [*lines, "---"]


def _licences(facts: CardFacts, data: str) -> list[str]:
    lines = [
        f"- **Weights:** {facts.licence}, as those they are made of."
        if facts.licence
        else "- **Weights:** not chosen yet. Whoever publishes them fills in `license` above and this line.",
        f"- **Training data:** {data}: {known_by_folder(data).licence or UNKNOWN_LICENCE}.",
    ]
    if facts.classes is not None:
        lines.append("- **Support set:** yours; it is not in this folder, but the weights were adapted to it.")
    return [*lines, "- **`network.py`:** MIT."] if facts.has_module else lines


def _what(facts: CardFacts, config: Mapping[str, Any]) -> str:
    body = f"A {config['backbone']} network"
    if facts.classes is None:
        head = {
            True: f"Its head of {config['num_classes_per_set']} outputs is a start too, without meaning before "
            "adaptation",
            False: "It has no head and returns features: each task makes its own",
        }[facts.has_head]
        return (
            f"{body}, the **initialisation** that meta-learning found on {config['dataset_name']}, **not a classifier "
            f"yet**. {head}: adapt it to a few examples."
        )
    counts = ", ".join(
        f"{_markdown(name)} ({count})" for name, count in zip(facts.classes, facts.support_counts, strict=True)
    )
    return (
        f"{body}, meta-learned on {config['dataset_name']} and **adapted** to these classes, in the order of its "
        f"outputs (support examples in brackets): {counts}."
    )


def _use(facts: CardFacts, config: Mapping[str, Any]) -> list[str]:
    sides = config["input_shape"] or [config["image_channels"], config["image_height"], config["image_width"]]
    shape = ", ".join(map(str, sides))
    what = "examples" if config["input_shape"] else "images"
    lines = []
    if facts.has_module and "model.safetensors" in facts.files:
        lines += [
            "```python",
            "from network import load_network          # network.py of this folder: torch and safetensors",
            'network = load_network(".")',
            f"outputs = network({what})".ljust(43) + f"# (n, {shape}) float",
            "```",
            "",
        ]
    elif "model.safetensors" in facts.files:
        lines += [
            "`model.safetensors` has the names of the module of the plugin that built the network "
            f"({', '.join(config['plugin_sha256'])}).",
            "",
        ]
    lines += [
        (
            f"Examples are as the run's data were, of the `input_shape` `{json.dumps(sides)}`"
            if config["input_shape"]
            else f"Images are float, (n, {shape}): resized by `{config['resize_filter']}`, values from 0 to 1"
        )
        + ", normalised as `input` in `config.json` says"
        + (", blue green red" if config["reverse_channels"] else "")
        + ". "
        + _norm_text(facts)
    ]
    if "network.pt2" in facts.files:
        lines += [
            "",
            "`network.pt2` is read by `torch.export.load`. Such a file can run code when it is loaded: load only "
            "those that you trust.",
        ]
    return lines


def _norm_text(facts: CardFacts) -> str:
    if not facts.uses_batch and facts.statistics in ("transductive", "mixed"):
        return NO_BATCH
    if facts.classes is None:
        return OF_INITIALISATION.get(facts.statistics, BEFORE_ADAPTATION)
    return STATISTICS[facts.statistics]


def _data(facts: CardFacts, config: Mapping[str, Any], tested: Any) -> list[str]:
    ways, shots = config["num_classes_per_set"], config["num_samples_per_class"]
    lines = [
        f"- Meta-learned on the training classes of **{config['dataset_name']}**, {ways}-way {shots}-shot tasks, "
        f"epoch {facts.epoch} of the run."
    ]
    if tested is None:
        lines.append(
            f"- Accuracy: **this epoch was not tested** with {facts.statistics} batch-norm statistics and "
            f"{facts.steps} inner steps."
        )
    others = tested_results(facts)[:1] if tested is None else []
    for protocol, model in [tested] if tested else others:
        accuracy = ACCURACY.text(model["test_accuracy_mean"], model["test_accuracy_ci95"])
        lines.append(
            f"- Accuracy of this epoch after adaptation{'' if tested else ', otherwise normalised'}: **{accuracy}** "
            f"(mean over {protocol['tasks']} tasks of "
            f"test classes and its 95 % interval; {_ways(protocol)}, {protocol['queries']} queries per class, "
            f"{protocol['steps']} inner steps, "
            f"{protocol['statistics']} batch-norm statistics, test tasks of seed {protocol['seed']})."
        )
        if facts.classes is not None:
            lines.append(
                "- That is the accuracy of adapting to test classes, not to the classes of this folder, which was not "
                "measured."
            )
    lines.append("- Epochs are chosen by their validation accuracy, on classes that are in neither training nor test.")
    return lines


def _limits(facts: CardFacts, config: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- Learned on {config['dataset_name']}; on examples of another kind, or classes that look more alike than "
        "those of the test tasks, expect less.",
        "- It names one of its classes for every example, also for one that is of none of them; its probabilities are "
        "not calibrated.",
    ]
    if facts.classes is None:
        lines.append(
            "- The learned inner learning rates and the batch-norm rows of later steps are in the run's checkpoint, "
            "not here."
        )
    return lines


def _ways(protocol: Mapping[str, Any]) -> str:
    return f"{protocol['ways']}-way {protocol['shots']}-shot"


def _yaml(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)  # a JSON string is a YAML string


def _markdown(text: str) -> str:
    cleaned = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in cleaned)
