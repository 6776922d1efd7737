"""What is exported answers as the learner does, loads into a plain module, and says what it is."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from experiment_tools.export import formats as export_formats
from experiment_tools.export.__main__ import main
from experiment_tools.export.arrays import read_arrays
from experiment_tools.export.network import build_network, load_network
from experiment_tools.export.plain import plain_network
from few_shot_classifier import FewShotClassifier
from few_shot_learning_system import build_learner
from tests.tools.runs import PLUS_PLUS, TINY, run_tiny
from utils import registry
from utils.config import check_config
from utils.episodes.inputs import Inputs
from utils.errors import DataError
from utils.registry import register_backbone

GENERATOR = np.random.default_rng(3)
SUPPORT, LABELS = GENERATOR.integers(0, 256, (5, 10, 10), dtype=np.uint8), ["cat", "ant", "bee", "ant", "cat"]
PARAMETERS = {name: value for name, value in TINY.items() if name != "experiment_name"}
IMAGES = torch.rand((7, 1, 10, 10), generator=torch.Generator().manual_seed(0))


OF_NO_BIAS = {
    "adapter_kind": "film",
    "adapter_targets": ["layer?.0.conv1"],
    "backbone": "resnet10",
    "batch_norm_statistics": "running",
}
"""Convolutions that have no bias, but are shifted, which the norm after them does not take out."""


def learned(**changes):
    """A classifier whose initialisation was made up: every row of every norm, running statistics, inner rates
    differ.
    """
    config = check_config(TINY | {"precision": "float64"} | changes, "test")
    classifier = FewShotClassifier(**(PARAMETERS | {"precision": "float64"} | changes))
    generator = torch.Generator().manual_seed(2)
    tensors = build_learner(config, "cpu").state_tensors()
    moved = {
        name: value + 0.1 * torch.rand(value.shape, generator=generator, dtype=value.dtype)
        for name, value in tensors.items()
        if value.is_floating_point()
    }
    classifier._keep_initialisation(tensors | moved, config)
    return classifier


def exported(classifier, adapted=True):
    if adapted:
        classifier.fit(SUPPORT, LABELS)
    path = classifier.adapted_learner() if adapted else None
    learner = path.learner if adapted else classifier.initial_learner()
    return plain_network(learner, path, check_config(classifier.meta_config_, "test"))


@pytest.mark.parametrize("steps", [1, 4], ids=["as_trained", "more_steps_than_rows"])
@pytest.mark.parametrize("statistics", ["transductive", "running", "support", "episodic"])
def test_a_plain_module_answers_as_the_adapted_learner_for_all_batch_norm_statistics(statistics, steps):
    plain = exported(learned(**PLUS_PLUS, batch_norm_statistics=statistics, number_of_evaluation_steps_per_iter=steps))
    rebuilt = build_network(json.loads(json.dumps(plain.architecture))).double().eval()
    rebuilt.load_state_dict(plain.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(IMAGES.double()), plain.original(IMAGES), rtol=1e-9, atol=1e-9)
        one_by_one = torch.cat([rebuilt(image[None].double()) for image in IMAGES])
        alone = torch.allclose(one_by_one, rebuilt(IMAGES.double()), atol=1e-9)
    assert plain.uses_batch == (statistics == "transductive") == (not alone)


def test_outputs_of_a_learned_head_that_no_class_has_are_not_exported():
    classifier = learned(batch_norm_statistics="support")
    classifier.fit(SUPPORT[[0, 1]], ["cat", "ant"])
    config = check_config(classifier.meta_config_, "test")
    plain = plain_network(classifier.initial_learner(), classifier.adapted_learner(), config)
    with torch.no_grad():
        answers = plain.module(IMAGES.double())
        assert answers.shape == (7, 2)
        torch.testing.assert_close(answers, plain.original(IMAGES), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "conv4"},
        {"backbone": "resnet10"},
        {"backbone": "resnet12"},
        {"backbone": "resnet18", "batch_norm_statistics": "running"},
        {"backbone": "mlp", "image_channels": 1},
        {"max_pooling": False, "cnn_blocks_per_stage": 2},
        {"feature_scale": 3.0, "backbone": "conv4"},
        {"warp_kernel_size": 3},
        {"norm_layer": "layer_norm"},
        {"norm_layer": "group_norm", "norm_groups": 3},
        {"norm_layer": "task_norm"},
        {"norm_layer": "task_norm", "batch_norm_statistics": "support"},
        {"head": "prototypes"},
        {"head": "zero", "adapted_parameters": "head"},
        {"batch_norm_statistics": ["support", "transductive"]},
        {"enable_inner_loop_optimizable_bn_params": True},
        {"learnable_batch_norm_momentum": True, "batch_norm_statistics": "running"},
        {"adapter_kind": "lora", "adapter_rank": 2},
        {"adapter_kind": "lora", "backbone": "mlp", "head": "prototypes"},
        {"adapter_kind": "residual", "max_pooling": False},  # strides
        {"adapter_kind": "film", "batch_norm_statistics": "support"} | PLUS_PLUS,
        {"adapter_kind": "film", "norm_layer": "layer_norm", "adapter_targets": ["norm"]},
        {"adapter_kind": "film", "norm_layer": "task_norm", "adapter_targets": ["norm"]},
        pytest.param(OF_NO_BIAS, marks=pytest.mark.full),
        {"adapter_kind": "context", "adapter_targets": ["block1.norm"], "adapted_parameters": "body"},
    ],
    ids=lambda changes: "-".join(f"{value}" for value in changes.values())[:50],
)
def test_every_backbone_norm_and_head_has_a_plain_form(changes):
    classifier = learned(**changes)
    for adapted in (True, False):
        plain = exported(classifier, adapted)
        rebuilt = build_network(json.loads(json.dumps(plain.architecture))).double().eval()
        rebuilt.load_state_dict(plain.module.state_dict())
        with torch.no_grad():
            found = rebuilt(IMAGES.double())
        assert plain.has_head == (adapted or "head" not in changes)
        torch.testing.assert_close(found, plain.original(IMAGES.double()), rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run called tiny, one that only trained, and a support folder of three classes."""
    root = tmp_path_factory.mktemp("export")
    run_tiny(root / "experiments", total_epochs=1, **(PLUS_PLUS | {"total_iter_per_epoch": 2}))
    run_tiny(root / "experiments", experiment_name="unfinished", total_epochs=1, total_iter_per_epoch=1)
    (root / "experiments" / "unfinished" / "logs" / "test_summary.json").unlink()
    for name, image in zip(("ant", "bee | <b>", "cat"), SUPPORT, strict=False):
        folder = root / "support" / name
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / "0.png")
    return root


@pytest.fixture
def at_root(root, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS_DIR", str(root / "experiments"))
    monkeypatch.setenv("HOME", str(root / "home"))  # else paths of cards begin with ~ where /tmp is the home
    monkeypatch.chdir(root)
    return root


@pytest.mark.full
def test_the_exported_folder_answers_as_the_classifier_and_needs_nothing_of_this_project(at_root, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--experiment", "tiny", "--support", "support", "--statistics", "support", "--output", str(output)]
    assert main([*arguments, "--formats", "safetensors", "torch_export"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"model\.safetensors: differs from the original by at most \d\.\de[+-]\d\d", said)
    assert re.search(r"network\.pt2: differs from the original by at most \d\.\de[+-]\d\d", said)
    classifier = FewShotClassifier.from_experiment("tiny", batch_norm_statistics="support").fit(
        SUPPORT[:3], ["ant", "bee | <b>", "cat"]
    )
    pixels = GENERATOR.integers(0, 256, (4, 10, 10), dtype=np.uint8)
    images = torch.from_numpy(pixels[:, None] / np.float32(255))
    loaded = load_network(output)
    loaded.load_state_dict(load_file(output / "model.safetensors"))
    program = torch.export.load(output / "network.pt2").module()
    for network in (loaded, program):
        with torch.no_grad():
            np.testing.assert_allclose(torch.softmax(network(images), -1), classifier.predict_proba(pixels), atol=1e-5)
            torch.testing.assert_close(network(images[:1]), network(images)[:1])
    names = {
        name for name in load_file(output / "model.safetensors") if "running" not in name and "num_batches" not in name
    }
    assert names == {
        f"block{i}.{layer}.{which}" for i in (0, 1) for layer in ("conv", "norm") for which in ("weight", "bias")
    } | {"head.weight", "head.bias"}
    torch.save(images, tmp_path / "images.pt")
    elsewhere = (
        "import torch, network, sys; x = torch.load(sys.argv[1]); "
        "print(network.load_network('.')(x).detach().sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", elsewhere, str(tmp_path / "images.pt")],
        cwd=output,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == pytest.approx(loaded(images).sum().item(), abs=1e-5)


def test_the_model_card_says_what_it_is_in_the_form_that_hubs_read(at_root, tmp_path):
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed: pip install -r requirements-dev.txt")
    cards = []
    for name, arguments in (("adapted", ["--support", "support"]), ("start", [])):
        assert (
            main(["--experiment", "tiny", "--formats", "safetensors", "--output", str(tmp_path / name), *arguments])
            == 0
        )
        cards.append((tmp_path / name / "README.md").read_text())
    head = yaml.safe_load(cards[0].split("---")[1])
    summary = json.loads((at_root / "experiments" / "tiny" / "logs" / "test_summary.json").read_text())
    assert (
        head["license"] == "unknown" and head["library_name"] == "pytorch" and head["datasets"] == ["omniglot_dataset"]
    )
    metric = head["model-index"][0]["results"][0]["metrics"][0]
    assert metric["type"] == "accuracy" and metric["value"] == pytest.approx(
        100 * summary["models"][0]["test_accuracy_mean"], abs=0.006
    )
    interval = f"+- {100 * summary['models'][0]['test_accuracy_ci95']:.2f}"
    for text in (
        interval,
        "3-way 1-shot",
        "2 inner steps",
        "transductive batch-norm statistics",
        "examples of one batch are normalised together",
        "MIT (Lake et al. 2015)",
        "not chosen yet",
        "bee \\| \\<b\\> (1)",
        "was not measured",
        "model.safetensors",
        "--support support",
    ):
        assert text in cards[0], text
    assert "**not a classifier yet**" in cards[1] and "3 outputs is a start too" in cards[1]
    assert "as the inner loop does with a support set" in cards[1] and str(at_root) not in cards[0] + cards[1]


def test_the_command_of_the_card_exports_again_and_the_terminal_warns_of_what_needs_batches(
    at_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    shutil.copytree("support", "my data/support")
    Path("own net.py").write_text(
        'from mamlkit import register_backbone\nregister_backbone("of_card", lambda *_: None)'
    )
    arguments = [
        "--support",
        str(Path("my data/support").absolute()),
        "--plugin",
        "own net.py",
        "--formats=safetensors",
    ]
    assert main(["--experiment", "tiny", *arguments, "--output", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "single examples come out wrong" in said and "--statistics support" in said
    card = (tmp_path / "a" / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("python -m experiment_tools.export")]
    assert "'my data/support'" in line and "--plugin 'own net.py'" in line
    again = shlex.split(line)[3:]
    assert main([*again, "--statistics", "support", "--output", str(tmp_path / "b")]) == 0
    assert "single examples" not in capsys.readouterr().err
    shutil.rmtree("my data"), Path("own net.py").unlink()


@pytest.mark.parametrize(
    "support", [True, pytest.param(False, marks=pytest.mark.full)], ids=["adapted", "initialisation"]
)
def test_an_onnx_file_answers_as_the_original_for_any_number_of_images(at_root, tmp_path, monkeypatch, support):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -r requirements-dev.txt")
    if not support:  # the reference interpreter of onnx, as where onnxruntime is not installed
        find_spec = export_formats.find_spec
        monkeypatch.setattr(
            export_formats, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
        )
    assert (
        main(
            [
                "--experiment",
                "tiny",
                "--formats",
                "onnx",
                "--output",
                str(tmp_path / "out"),
                *(["--support", "support"] if support else []),
            ]
        )
        == 0
    )
    run = export_formats._onnx_runner(tmp_path / "out" / "network.onnx")
    assert [tuple(run(torch.rand(n, 1, 10, 10)).shape) for n in (1, 4, 9)] == [(1, 3), (4, 3), (9, 3)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--experiment", "nowhere"], 1, "nowhere: no such run folder"),
        (
            ["--experiment", "unfinished"],
            1,
            "this run has not finished (1 of 1 epochs, no test). Run its script again, or export what there is with "
            "--checkpoint EPOCH",
        ),
        (
            ["--experiment", "tiny", "--output", "support"],
            1,
            "support: exists already and stays as it is; give another --output",
        ),
        (["--experiment", "tiny", "--support", "nothing"], 2, "nothing: no such folder"),
        (["--experiment", "tiny", "--checkpoint", "7"], 1, "load_checkpoint 7:"),
        (
            ["--experiment", "tiny", "--formats", "onnx"],
            1,
            "--formats onnx needs onnx and onnxscript: pip install onnx onnxscript onnxruntime",
        ),
    ],
    ids=["no run", "unfinished", "output exists", "no support", "no epoch", "no library"],
)
def test_what_cannot_be_exported_is_one_error_and_leaves_nothing(
    at_root, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.setattr(export_formats, "find_spec", lambda name: None)
    before = sorted(at_root.rglob("*"))
    assert main(arguments) == code
    assert message in capsys.readouterr().err
    assert sorted(at_root.rglob("*")) == before


class Branching(torch.nn.Module):
    """A module of a user's that looks at values, which nothing that traces can follow."""

    def __init__(self, branches):
        super().__init__()
        self.conv, self.bn, self.branches = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), branches
        self.head = torch.nn.Linear(4, 3)

    def forward(self, images):
        x = torch.relu(self.bn(self.conv(images))).mean(dim=(2, 3))
        return self.head(x * 2 if self.branches and float(x.detach().sum()) > 3 else x)


register_backbone("export_plain", lambda config, shape, n_way: Branching(False))
register_backbone("export_branching", lambda config, shape, n_way: Branching(True))


def test_a_module_of_a_plugin_keeps_its_own_names(at_root, tmp_path):
    run_tiny(tmp_path, backbone="export_plain", total_epochs=1, total_iter_per_epoch=1)
    arguments = [
        "--experiment",
        str(tmp_path / "tiny"),
        "--support",
        "support",
        "--statistics",
        "support",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    own = Branching(False).eval()
    own.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    program = torch.export.load(tmp_path / "out" / "network.pt2").module()
    torch.testing.assert_close(own(IMAGES), program(IMAGES))
    assert not (tmp_path / "out" / "network.py").exists()


def test_a_module_that_cannot_be_traced_is_one_error(at_root, tmp_path, capsys):
    run_tiny(tmp_path, backbone="export_branching", task_batching="loop", total_epochs=1, total_iter_per_epoch=1)
    assert (
        main(["--experiment", str(tmp_path / "tiny"), "--support", "support", "--output", str(tmp_path / "out")]) == 1
    )
    error = capsys.readouterr().err
    assert (
        "the network cannot be exported as torch_export" in error
        and "--formats safetensors keeps its weights" in error
        and "Traceback" not in error
    )
    assert not (tmp_path / "out").exists()


class Series(torch.nn.Module):
    """A 1-D convolution without a bias, and the mean over time."""

    def __init__(self, shape, n_way):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv1d(shape[0], 5, 3, bias=False), torch.nn.BatchNorm1d(5)
        self.head = torch.nn.Linear(5, n_way)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).mean(-1))


class Words(torch.nn.Module):
    """The mean of embedded ids, where a mask says that they count."""

    def __init__(self, n_way):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, n_way)

    def forward(self, ids, mask):
        words = self.embedding(ids)
        counts = mask[..., None].to(words.dtype)
        return self.head((words * counts).sum(1) / counts.sum(1).clamp(min=1))


register_backbone("export_series", lambda config, shape, n_way: Series(shape, n_way))
register_backbone("export_words", lambda config, shapes, n_way: Words(n_way))
ARRAYS = {
    "table": {"input_shape": (4,), "backbone": "mlp", "mlp_hidden_sizes": (6,)},
    "spectrogram": {"input_shape": (2, 8, 9), "backbone": "conv4", "cnn_num_filters": 3},
    "series": {
        "input_shape": (2, 16), "backbone": "export_series", "batch_norm_statistics": "running",
        "adapter_kind": "film", "adapter_targets": ["*.conv"],
    },
    "text": {"input_shape": ("ids:int:5", "mask:bool:5"), "backbone": "export_words"},
}  # fmt: skip
KINDS = np.repeat([f"kind {number}" for number in range(9)], 6)
SUPPORT_OF_ARRAYS = {"first kind": [0, 1], "second": [7, 8, 9], "third": [14]}


def arrays_of(name):
    """54 examples, as `fit` takes them."""
    draw, shape = np.random.default_rng(5), ARRAYS[name]["input_shape"]
    if name != "text":
        return draw.standard_normal((len(KINDS), *shape)).astype(np.float32)
    return {"ids": draw.integers(0, 9, (len(KINDS), 5)), "mask": draw.random((len(KINDS), 5)) < 0.7}


@pytest.fixture
def run_on_arrays(request, tmp_path, monkeypatch):
    """A run called arrays, in a folder with a support set of three classes."""
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name, given = request.param, arrays_of(request.param)
    keys = {key: value for key, value in TINY.items() if not key.startswith(("image_", "experiment_", "class_rot"))}
    few = {"experiment_name": "arrays", "total_epochs": 1, "total_iter_per_epoch": 2}
    FewShotClassifier(**(keys | few | ARRAYS[name])).meta_fit((given, KINDS))
    for kind, rows in SUPPORT_OF_ARRAYS.items():
        files = {f"{kind}/{part}": values for part, values in given.items()} if name == "text" else {kind: given}
        for file, values in files.items():
            (tmp_path / "support" / file).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "support" / f"{file}.npy", values[rows])
    return name, given


EXPORT_ARRAYS = ["--experiment", "arrays", "--checkpoint", "1", "--output", "out", "--formats"]


@pytest.mark.parametrize("run_on_arrays", ARRAYS, indirect=True)
@pytest.mark.parametrize(
    "formats", [["safetensors"], pytest.param(["torch_export", "onnx"], marks=pytest.mark.full)], ids=" ".join
)
def test_a_run_on_arrays_is_exported_adapted_to_files_of_arrays(run_on_arrays, formats, tmp_path):
    name, given = run_on_arrays
    assert main([*EXPORT_ARRAYS, *formats, "--support", "support"]) == 0

    def rows(places):
        return {part: values[places] for part, values in given.items()} if name == "text" else given[places]

    chosen = [place for places in SUPPORT_OF_ARRAYS.values() for place in places]
    labels = [kind for kind, places in SUPPORT_OF_ARRAYS.items() for _ in places]
    query = rows(slice(20, 27))
    classifier = FewShotClassifier.from_experiment("arrays", 1).fit(rows(chosen), labels)
    expected = torch.from_numpy(classifier.predict_proba(query))
    by_name = {part: torch.from_numpy(values) for part, values in query.items()} if name == "text" else {}
    by_position = () if name == "text" else (torch.from_numpy(query),)
    networks = []
    if "torch_export" in formats:
        networks.append(torch.export.load(tmp_path / "out" / "network.pt2").module())
        networks.append(export_formats._onnx_runner(tmp_path / "out" / "network.onnx"))
    elif name in ("table", "spectrogram"):
        networks.append(load_network(tmp_path / "out"))
    else:
        own = Words(3) if name == "text" else Series((2, 16), 3)
        if name == "series":
            own.conv.bias = torch.nn.Parameter(torch.zeros(5))  # for the shift of its adapter
        own.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
        networks.append(own.eval())
    for network in networks:
        found = torch.softmax(network(*by_position, **by_name).detach().double(), -1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "first kind (2), second (3), third (1)" in card and "pipeline_tag: other" in card
    assert f"`input_shape` `{json.dumps(ARRAYS[name]['input_shape'])}`" in card and "resized" not in card


@pytest.mark.parametrize("run_on_arrays", ["text"], indirect=True)
def test_the_initialisation_of_a_run_on_arrays_needs_no_support(run_on_arrays, tmp_path):
    assert main([*EXPORT_ARRAYS, "safetensors"]) == 0
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["input"]["input_shape"] == ["ids:int:5", "mask:bool:5"] and described["classes"] is None


@pytest.mark.parametrize(
    ("input_shape", "files", "message"),
    [
        ((4,), {}, r"no arrays in it; --support holds for each class a file CLASS.npy, an array \(n, 4\), or of"),
        (
            (4,),
            {"ant.npy": np.zeros((2, 3))},
            r"ant.npy: is float64 \(2, 3\), but must be an array \(n, 4\) of numbers",
        ),
        ((4,), {"ant.npy": np.full((2, 4), np.nan)}, "ant.npy: holds NaN or infinity"),
        ((4,), {"ant.npy": np.array([None])}, "ant.npy: no array that can be read: an array of objects"),
        (("a:int:1", "b:int:1"), {"ant/a.npy": np.zeros((2, 1), int)}, "ant: has a, but must be a dict of a, b"),
        (("a:int:1", "b:int:1"), {"ant.npy": np.zeros((2, 2))}, "ant.npy: is float64 .*, but must be a dict of a, b"),
    ],
)
def test_a_support_set_of_other_arrays_is_one_error_that_names_the_file(tmp_path, input_shape, files, message):
    for name, array in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, array)
    with pytest.raises(DataError, match=message):
        read_arrays(tmp_path, Inputs.of(input_shape))
