"""Make one script in experiment_scripts/ for every config in experiment_config/, hand-written configs too.

    cd script_generation_tools && python generate_configs.py && python generate_scripts.py

The scripts are local_run_template_script.sh with `$execution_script$` and `$experiment_config$` filled in.
"""

import argparse
import shlex
import sys
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY_ROOT))

from script_generation_tools.generated_files import Outcome, update_folder  # noqa: E402
from utils.errors import ConfigError, UserError  # noqa: E402

EXECUTION_SCRIPT = "train_maml_system.py"
CONFIG_PLACEHOLDER = "$experiment_config$"
PROGRAM_PLACEHOLDER = "$execution_script$"


def generate_scripts(config_folder: Path, script_folder: Path, template: Path, *, prune: bool = False) -> Outcome:
    """Write a script for each config of a folder.

    Args:
        config_folder: its name and the file's are the path that a script passes on; both folders lie in the checkout.
        template: the bash template.
    Raises:
        ConfigError: the template cannot be read or lacks the place of the config.
    """
    try:
        text = template.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{template}: cannot be read ({error.strerror}); it is the template of the scripts"
        ) from error
    if CONFIG_PLACEHOLDER not in text:
        raise ConfigError(
            f"{template.name}: holds no {CONFIG_PLACEHOLDER}, so every script would start the same experiment"
        )
    configs = sorted(config_folder.glob("[!.]*.json"))
    scripts = {f"{config.stem}.sh": fill_script(text, f"{config_folder.name}/{config.name}") for config in configs}
    return update_folder(script_folder, scripts, prune=prune)


def fill_script(template: str, config: str) -> str:
    """Put a config's path, quoted for the shell, into the text of the bash template."""
    return template.replace(PROGRAM_PLACEHOLDER, EXECUTION_SCRIPT).replace(CONFIG_PLACEHOLDER, shlex.quote(config))


def main(arguments: list[str] | None = None) -> int:
    """Generate the scripts of this checkout; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Make a script in experiment_scripts/ for each config in experiment_config/."
    )
    parser.add_argument("--prune", action="store_true", help="remove outdated generated scripts that nobody edited")
    options = parser.parse_args(arguments)
    script_folder = REPOSITORY_ROOT / "experiment_scripts"
    template = REPOSITORY_ROOT / "script_generation_tools" / "local_run_template_script.sh"
    try:
        outcome = generate_scripts(REPOSITORY_ROOT / "experiment_config", script_folder, template, prune=options.prune)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(outcome.report(script_folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
