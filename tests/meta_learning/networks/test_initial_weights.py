"""A body starts from the tensors of a file, strictly; the head does not."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train_maml_system
from experiment_tools.report.page import write_report
from few_shot_classifier import FewShotClassifier
from meta_neural_network_architectures import build_network
from tests.test_train_maml_system import CONFIG
from tests.tools.learners import small_config
from tests.tools.runs import run_tiny
from utils.config import check_config
from utils.errors import ConfigError


def saved(tmp_path, state, name="body.safetensors"):
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
    return str(tmp_path / name)


def test_a_torchvision_network_starts_from_its_state_dict_and_keeps_its_own_head(tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(3)
    plain = models.resnet18(num_classes=1000)
    changes = {"backbone": "resnet18", "image_channels": 3}
    path = saved(tmp_path, plain.state_dict())
    ours, fresh = (
        build_network(small_config(**changes, initial_weights=weights)).state_dict() for weights in (path, "")
    )
    for name, value in plain.state_dict().items():
        if not name.endswith("num_batches_tracked") and not name.startswith("fc."):
            assert torch.equal(ours[name], value), name
    assert torch.equal(ours["fc.weight"], fresh["fc.weight"]) and ours["fc.weight"].shape == (3, 512)


def test_weights_that_come_with_the_project_have_a_name():
    learned = FewShotClassifier.from_pretrained("omniglot_5way_1shot")
    changes = {"initial_weights": "omniglot_5way_1shot", "num_classes_per_set": 20, "seed": 5}
    network = build_network(check_config(learned.meta_config_ | changes, "test")).state_dict()
    assert network["head.weight"].shape == (20, 64)
    body = {name: value for name, value in network.items() if not name.startswith("head.")}
    assert len(body) > 20 and all(torch.equal(learned.initialisation_[f"network.{n}"], v) for n, v in body.items())


def test_one_row_in_the_file_serves_all_rows_of_the_norms(tmp_path):
    source = build_network(small_config(seed=5))
    with torch.no_grad():
        source.block0.norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    path = saved(tmp_path, source.state_dict())
    network = build_network(
        small_config(
            initial_weights=path,
            per_step_bn_statistics=True,
            learnable_batch_norm_momentum=True,
            batch_norm_statistics="running",
        )
    )
    assert torch.equal(network.block0.conv.weight, source.block0.conv.weight)
    assert network.block0.norm.weight.tolist() == [[1.0, 2.0, 3.0]] * 3


def test_a_checkpoint_of_this_project_gives_its_body_to_another_number_of_ways(tmp_path):
    run = run_tiny(tmp_path, experiment_name="first", total_epochs=1)
    path = str(run / "saved_models" / "train_model_1.safetensors")
    changes = {"image_height": 10, "image_width": 10, "num_classes_per_set": 2, "precision": "float32"}
    network = build_network(small_config(**changes, initial_weights=path))
    other = build_network(small_config(**changes))
    assert not torch.equal(network.block0.conv.weight, other.block0.conv.weight) and torch.equal(
        network.head.weight, other.head.weight
    )


def test_every_difference_is_listed(tmp_path):
    state = build_network(small_config(cnn_num_filters=4)).state_dict()
    state["extra.weight"] = torch.zeros(2)
    del state["block1.conv.bias"]
    path = saved(tmp_path, state)
    with pytest.raises(ConfigError) as error:
        build_network(small_config(initial_weights=path))
    text = str(error.value)
    assert text.startswith(f'"initial_weights" {path} does not fit the network that this config builds:')
    assert "\n  block0.conv.weight: (4, 1, 3, 3) in the file, (3, 1, 3, 3) here" in text
    assert "\n  block1.conv.bias: missing in the file" in text and "head" in text.splitlines()[-1]
    state = {f"layer{index}.weight": torch.zeros(1) for index in range(20)}
    with pytest.raises(ConfigError, match=r"\n  block0.conv.bias: missing in the file(.|\n)*\n  and 20 more\n"):
        build_network(small_config(initial_weights=saved(tmp_path, state, "other.safetensors")))


@pytest.mark.parametrize("content", [None, b"not tensors"])
def test_a_file_that_cannot_be_read_says_what_to_give(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content:
        path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"weights.pth cannot be read \(.*\); give a safetensors file, which torch tensors become by"
    ):
        build_network(small_config(initial_weights=str(path)))


def test_a_run_that_was_saved_does_not_need_the_file_any_more(tmp_path, tiny_dataset, monkeypatch, capsys):
    tiny_dataset("tiny", n_classes=12)
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    path = saved(tmp_path, build_network(small_config(cnn_num_filters=4, image_height=14, image_width=14)).state_dict())
    (tmp_path / "config.json").write_text(
        json.dumps(CONFIG | {"initial_weights": path, "per_step_bn_statistics": False})
    )

    def main(*arguments):
        code = train_maml_system.main(["--name_of_args_json_file", str(tmp_path / "config.json"), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    code, out, err = main("--total_epochs", "1")
    assert code == 0 and f"initial_weights {path}: 12 tensors of the body; the head starts as ever" in out, err
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    (tmp_path / "body.safetensors").unlink()
    code, out, err = main("--total_epochs", "2")
    assert code == 0 and "epoch 2/2" in out and "initial_weights" not in out, err
    run = tmp_path / "experiments" / CONFIG["experiment_name"]
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["initial_weights_sha256"] for start in starts] == [digest, None]
    assert digest in write_report(run).read_text()
    code, out, err = main("--experiment_name", "another")
    assert code == 1 and f'"initial_weights" {path} cannot be read (no such file); give the file of a run' in err
    assert "or a name: omniglot_20way_1shot_fast, " in err and "classes" not in out
    of_the_run = f"{CONFIG['experiment_name']}/saved_models/train_model_2.safetensors"
    assert not Path(of_the_run).exists()  # from here; from the folder of the runs there is one
    for given in (of_the_run, f"experiments/{of_the_run}"):  # the latter as cards of weights have it
        name = f"another_{given.count('/')}"
        code, out, err = main("--experiment_name", name, "--initial_weights", given, "--feature_scale", "3")
        assert code == 0 and f"initial_weights {tmp_path}/experiments/{of_the_run}: 12 tensors of the body" in out, err
        assert f"initial_weights {given}: trained with --feature_scale 0.0; this run has --feature_scale 3.0\n" in out
