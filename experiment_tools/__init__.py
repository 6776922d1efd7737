"""What one does around a run: each tool is started as `python -m experiment_tools.<name>`."""

import shlex
import sys
from pathlib import Path
from types import TracebackType

REQUIRED_PACKAGES = ("torch", "torchvision", "numpy", "tqdm", "PIL", "scipy", "pydantic", "safetensors", "matplotlib", "jinja2")


def set_up_command() -> str:
    """What brings a Python that has the required packages: the environment that install.sh has made, or making it."""
    root = Path(__file__).resolve().parent.parent
    made = root / ".venv" / "bin" / "activate"
    if made.is_file() and Path(sys.prefix).resolve() != made.parent.parent:
        return f"source {shlex.quote(str(made))}"
    return f"bash {shlex.quote(str(root / 'install.sh'))}"


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A missing package in one line, with what to do; anything else as ever."""
    package = str(getattr(error, "name", "")).partition(".")[0]
    if issubclass(kind, ModuleNotFoundError) and package in REQUIRED_PACKAGES:
        print(f"The package {package} is missing in {sys.executable}. Run: {set_up_command()}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # a tool is being started, as opposed to imported
    sys.excepthook = _show_error
