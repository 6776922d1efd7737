"""What one does around a run: a module is a command, or what several of them share."""

import sys
from types import TracebackType


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a missing package in one line, with what to do; all else as ever."""
    if issubclass(kind, ModuleNotFoundError):
        from utils.machine.packages import requirements, set_up_command

        package = str(error.name).partition(".")[0]
        if package in {requirement.module for requirement in requirements()}:
            print(f"The package {package} is missing in {sys.executable}. Run: {set_up_command()}", file=sys.stderr)
            return
    sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # a tool is being started, as opposed to imported
    sys.excepthook = _show_error
