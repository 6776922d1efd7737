"""Turn a config of "How to train your MAML in PyTorch" (JSON) or of PyTorch-MAML (YAML) into one of this project.

    python script_generation_tools/convert_config.py OLD.json [--output NEW.json]
    python script_generation_tools/convert_config.py TRAIN.yaml [TEST.yaml] [--output NEW.json]

Prints a line for every key that had no effect there and every value that differed from what that code really did. The
new config goes to experiment_config/ unless --output names another place; generate_scripts.py makes its script.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from script_generation_tools.fmu2_configs import convert_fmu2_config
from script_generation_tools.reference_configs import Conversion, convert_reference_config
from utils.config import check_config
from utils.errors import ConfigError, prints_user_errors
from utils.files.atomic_files import write_bytes_atomically
from utils.files.reading import parse_json, read_text, why_unreadable
from utils.paths import working_folder
from utils.words import say

YAML_SUFFIXES = (".yaml", ".yml")


def convert_files(paths: Sequence[Path]) -> Conversion:
    """Convert the config of one or two files; the result is complete, checked and valid input.

    Raises:
        ConfigError: a file cannot be read, is of another kind, or what it says does not work here.
    """
    if len(paths) > 2 or (len(paths) == 2 and not all(path.suffix in YAML_SUFFIXES for path in paths)):
        raise ConfigError("give one JSON config, or a training YAML and, if there is one, its test YAML")
    contents = [_read(path) for path in paths]
    try:
        if paths[0].suffix in YAML_SUFFIXES:
            conversion = convert_fmu2_config(contents[0], contents[1] if len(contents) == 2 else None, paths[0].stem)
        else:
            conversion = convert_reference_config(contents[0])
    except ConfigError as error:
        raise ConfigError(f"{paths[0]}: {error}") from error
    config = check_config(conversion.values, str(paths[0]))
    read_otherwise = [note for note in config.notes if "is read as" in note]
    return Conversion(config.to_json_dict(), conversion.findings + read_otherwise)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, may_be_pipe=True)
        content = _yaml(path, text) if path.suffix in YAML_SUFFIXES else parse_json(text)
    except (OSError, ValueError) as error:
        is_json = isinstance(error, ValueError) and path.suffix not in YAML_SUFFIXES
        advice = "; a YAML's name must end in .yaml or .yml" if is_json else ""
        raise ConfigError(f"{path}: {why_unreadable(error)}{advice}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a table of keys and values, not a {type(content).__name__}")
    return content


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path}: reading YAML needs the package pyyaml. Run: {sys.executable} -m pip install pyyaml"
        ) from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not a plain YAML of keys and values ({' '.join(str(error).split())})") from None


@prints_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, say what was found, write the new config; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="the old JSON; or the training YAML and its test YAML"
    )
    parser.add_argument("--output", type=Path, help="where the new config goes; never over a file that exists")
    options = parser.parse_args(arguments)
    conversion = convert_files(options.files)
    output = options.output or working_folder() / "experiment_config" / f"{options.files[0].stem}.json"
    if output.exists():
        raise ConfigError(f"{output}: exists already and stays as it is; give another --output")
    write_bytes_atomically(output, (json.dumps(conversion.values, indent=2) + "\n").encode())
    for finding in conversion.findings:
        say(f"- {finding}")
    say(f"{output}: written, {len(conversion.findings)} findings above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
