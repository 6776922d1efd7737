"""Make one script in experiment_scripts/ for every config in experiment_config/, hand-written configs too; and jobs
for SLURM.

    cd script_generation_tools && python generate_configs.py && python generate_scripts.py

The scripts are local_run_template_script.sh with `$execution_script$` and `$experiment_config$` filled in. Configs
that differ in the seed at the end of their name alone share a job, slurm_template_script.sbatch with `$job_name$`,
`$array$` and `$experiment_script$` filled in: an array over the seeds.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

if not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from script_generation_tools.generated_files import Outcome, update_folder
from utils.errors import ConfigError, prints_user_errors
from utils.files.reading import parse_toml, read_text, why_unreadable
from utils.paths import COMMANDS, REPOSITORY_ROOT, working_folder
from utils.words import say

EXECUTION_SCRIPT = COMMANDS["train"]
CONFIG_PLACEHOLDER = "$experiment_config$"
PROGRAM_PLACEHOLDER = "$execution_script$"
SCRIPT_PLACEHOLDER = "$experiment_script$"
JOB_TEMPLATE = REPOSITORY_ROOT / "script_generation_tools" / "slurm_template_script.sbatch"


def generate_scripts(
    config_folder: Path, script_folder: Path, template: Path, job_template: Path | None = None, *, prune: bool = False,
    plugins: Mapping[str, Sequence[Path]] | None = None,
) -> Outcome:  # fmt: skip
    """Write a script for each config of a folder, and a job for SLURM for each setting.

    Args:
        config_folder: its name and the file's are the path that a script passes on; both folders lie in the checkout.
        template: the bash template.
        job_template: that of the jobs; None: this checkout's.
        plugins: name of a config -> the files that its script gives with --plugin.
    Raises:
        ConfigError: a template cannot be read or lacks the place of the config.
    """
    text = _read_template(template, CONFIG_PLACEHOLDER)
    job_text = _read_template(job_template or JOB_TEMPLATE, SCRIPT_PLACEHOLDER)
    configs = sorted(config_folder.glob("[!.]*.json"))
    scripts = {}
    for config in configs:
        script = fill_script(text, f"{config_folder.name}/{config.name}")
        scripts[f"{config.stem}.sh"] = with_plugins(script, (plugins or {}).get(config.stem, ()), script_folder)
    for name, seeds in seeds_of_settings(config.stem for config in configs).items():
        scripts[f"{name}.sbatch"] = fill_job(job_text, name, f"{script_folder.name}/{name}", seeds)
    return update_folder(script_folder, scripts, prune=prune)


def _read_template(template: Path, placeholder: str) -> str:
    try:
        text = read_text(template)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{template}: {why_unreadable(error)}; it is the template of the scripts") from error
    if placeholder not in text:
        raise ConfigError(f"{template.name}: holds no {placeholder}, so every script would start the same experiment")
    return text


def seeds_of_settings(names: Iterable[str]) -> dict[str, list[int]]:
    """Return names of configs without `_seed<number>` -> these numbers; a name without one stands alone, with none."""
    settings: dict[str, list[int]] = {}
    for name in names:
        match = re.fullmatch(r"(.+)_seed(0|[1-9]\d{0,5})", name)
        seeds = settings.setdefault(match[1] if match else name, [])
        if match:
            seeds.append(int(match[2]))
    return {name: sorted(seeds) for name, seeds in settings.items()}


def fill_job(template: str, name: str, script: str, seeds: list[int]) -> str:
    """Put a setting's script, without seed and ending, and its seeds into the text of the job template; without
    seeds it is no array.
    """
    array = f"#SBATCH --array={','.join(map(str, seeds))}\n" if seeds else ""
    job_name = re.sub(r"[^A-Za-z0-9_+=,.()-]", "_", name)  # one word for sbatch
    filled = template.replace("$job_name$", job_name).replace("$array$\n", array)
    return filled.replace(SCRIPT_PLACEHOLDER, shlex.quote(script))


def fill_script(template: str, config: str) -> str:
    """Put a config's path, quoted for the shell, into the text of the bash template."""
    return template.replace(PROGRAM_PLACEHOLDER, EXECUTION_SCRIPT).replace(CONFIG_PLACEHOLDER, shlex.quote(config))


def with_plugins(script: str, plugins: Sequence[Path], script_folder: Path) -> str:
    """Let a script give plugin files, named relative to itself."""
    here = '"$(dirname -- "$(readlink -f -- "$0")")"'
    paths = [f"{here}/{shlex.quote(os.path.relpath(path, script_folder))}" for path in plugins]
    return script.replace('"$@"', " ".join(['"$@" --plugin', *paths])) if paths else script


def plugins_of_templates(template_folder: Path) -> Mapping[str, Sequence[Path]]:
    """Return name of a config -> its plugin files; without any nothing is expanded, and no package is needed."""
    try:
        sections = parse_toml(read_text(template_folder / "values.toml")).values()
    except (OSError, ValueError):
        return {}  # generate_configs says what is wrong with it
    if not any(isinstance(section, dict) and "plugin" in section for section in sections):
        return {}
    from script_generation_tools.generate_configs import plugins_of_configs

    return plugins_of_configs(template_folder)


@prints_user_errors
def main(arguments: list[str] | None = None) -> int:
    """Generate the scripts of this checkout; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Make a script in experiment_scripts/ for each config in experiment_config/, and a SLURM job for "
        "each setting."
    )
    parser.add_argument("--prune", action="store_true", help="remove outdated generated scripts that nobody edited")
    options = parser.parse_args(arguments)
    folder = working_folder()
    tools, scripts = folder / "script_generation_tools", folder / "experiment_scripts"
    templates = (tools / "local_run_template_script.sh", tools / JOB_TEMPLATE.name)
    outcome = generate_scripts(
        folder / "experiment_config",
        scripts,
        *templates,
        prune=options.prune,
        plugins=plugins_of_templates(folder / "experiment_template_config"),
    )
    say(outcome.report(scripts))
    if jobs := [name for name in outcome.written if name.endswith(".sbatch")]:
        say(f"for SLURM, all seeds of a setting in one job: sbatch {scripts.name}/{jobs[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
