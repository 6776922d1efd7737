"""Make a folder to work in: templates, values, generators, scripts: python -m script_generation_tools.new FOLDER

For an installed mamlkit: from then on FOLDER works as a checkout does. What is there is never overwritten.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from script_generation_tools.generate_configs import generate_configs
from script_generation_tools.generate_scripts import generate_scripts
from utils.errors import ConfigError, prints_user_errors
from utils.files.atomic_files import write_bytes_atomically
from utils.paths import MARK, PACKAGE, REPOSITORY_ROOT, __version__, command, expanded
from utils.words import counted, printable, say

TEMPLATES, TOOLS, CONFIGS = "experiment_template_config", "script_generation_tools", "experiment_config"
GENERATOR = '''\
"""Calls `mamlkit %s` for the folder that this file lies in, by the Python that launch.sh names."""

import os
import sys
from pathlib import Path

launcher = Path(__file__).resolve().with_name("launch.sh")
os.execvp("bash", ["bash", str(launcher), "%s", *sys.argv[1:]])
'''


def files_of_a_folder() -> dict[str, bytes]:
    """Return what a new folder has before anything is generated: path in it -> content."""
    copies = [*(REPOSITORY_ROOT / TEMPLATES).glob("[!.]*")]
    copies += [REPOSITORY_ROOT / TOOLS / name for name in
               ("local_run_template_script.sh", "slurm_template_script.sbatch", "slurm_job.sh")]  # fmt: skip
    files = {path.relative_to(REPOSITORY_ROOT).as_posix(): path.read_bytes() for path in sorted(copies)}
    for name in ("generate_configs", "generate_scripts"):
        files[f"{TOOLS}/{name}.py"] = (GENERATOR % (name, name)).encode()
    launcher = (REPOSITORY_ROOT / TOOLS / "folder_launch.sh").read_text(encoding="utf-8")
    launcher = launcher.replace("python=PYTHON\n", f"python={shlex.quote(sys.executable)}\n")
    return files | {f"{TOOLS}/launch.sh": launcher.encode(), MARK: f"made by mamlkit {__version__}\n".encode()}


@prints_user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder; return the exit code."""
    parser = argparse.ArgumentParser(prog=command("new"), description=__doc__.partition("\n\n")[2])
    parser.add_argument("folder", type=expanded, metavar="FOLDER", help="new, or there already")
    folder = Path(parser.parse_args(arguments).folder).absolute()
    if not PACKAGE:
        raise ConfigError(f"{folder}: new is for an installed mamlkit; work in the checkout, {REPOSITORY_ROOT}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{printable(folder)}: is a file; give the folder another name")
    files = files_of_a_folder()
    missing = {name: content for name, content in files.items() if not (folder / name).exists()}
    generates = not (folder / CONFIGS).exists()
    for name, content in missing.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(folder / name, content)
    stay = len(files) - len(missing)
    say(f"{printable(folder)}: {counted(len(missing), 'file')} written, {stay} were there and stay as they are")
    if generates:
        configs, scripts = folder / CONFIGS, folder / "experiment_scripts"
        say(generate_configs(folder / TEMPLATES, configs).report(configs))
        say(generate_scripts(configs, scripts, folder / TOOLS / "local_run_template_script.sh").report(scripts))
    say(f"Next: bash {shlex.quote(str(folder))}/experiment_scripts/quickstart.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
