"""Begin a method of your own: python -m experiment_tools.new_method NAME [--kind KIND] [--folder FOLDER]

Writes NAME.py, a small method that works and says what each line is for, and test_NAME.py, and checks its gradient.
KIND: inner_loop_optimizer (default), head, loss, outer_loss, norm_layer or adapter_kind. Nothing is overwritten.
"""

import argparse
import sys
from pathlib import Path

from experiment_tools.check_gradients.__main__ import main as check_gradients
from utils.errors import ConfigError, prints_user_errors
from utils.files.atomic_files import storage_errors
from utils.paths import REPOSITORY_ROOT, command, expanded
from utils.registry import is_module
from utils.registry.choices import choices
from utils.words import say

SKELETONS = Path(__file__).with_name("skeletons")
KINDS = tuple(path.stem for path in sorted(SKELETONS.glob("*.txt")) if path.stem != "test")


def write_skeleton(name: str, kind: str, folder: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py and return their paths.

    Raises:
        ConfigError: the name is no name of a Python file, or one of the files is there. StorageError: no permission.
    """
    if not (name.isascii() and name.isidentifier() and name.islower()):
        raise ConfigError(f"{name!r} must be of small letters, digits and _, not begin with a digit, as in my_method")
    words = {
        "NAME": name,
        "CLASS": "".join(map(str.capitalize, name.split("_"))),
        "CHECKOUT": str(REPOSITORY_ROOT),
        "TRAIN": command("train"),
    }
    if is_module(name) and not (folder / f"{name}.py").exists():
        raise ConfigError(
            f"{name}: there is a module of this name already, which {name}.py would hide; give another NAME"
        )
    if name in choices(kind):
        raise ConfigError(f'there is a {kind} "{name}" already; give another NAME')
    paths = [folder / f"{name}.py", folder / f"test_{name}.py"]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} is there already; give another NAME or --folder")
    for path, skeleton in zip(paths, (kind, "test"), strict=True):
        text = (SKELETONS / f"{skeleton}.txt").read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return paths


@prints_user_errors
def main(arguments: list[str] | None = None) -> int:
    """Write the files, check the gradient and return the exit code."""
    parser = argparse.ArgumentParser(
        prog=command("new_method"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the method and of its file")
    parser.add_argument("--kind", choices=KINDS, default="inner_loop_optimizer")
    parser.add_argument("--folder", default=".", help="where the two files go; default: here")
    options = parser.parse_args(arguments)
    plugin, test = write_skeleton(options.name, options.kind, expanded(options.folder))
    say(f"{plugin}: a method to change\n{test}: what it is held to\n")
    code = check_gradients(["--plugin", str(plugin)])
    if code == 0:
        train, chosen = command("train"), f"--{options.kind} {options.name} --plugin {plugin}"
        if options.kind == "norm_layer":
            chosen += " --per_step_bn_statistics false"  # which the quickstart has, and batch norm alone knows
        say(f"\nTrain with it: {train} quickstart --experiment_name {options.name} {chosen}")
        say(f"Compare it with what it changes: {train} quickstart; {command('compare')} quickstart {options.name}")
    return code


if __name__ == "__main__":
    sys.exit(main())
