"""What everything stands on: a few files on the ground, and wings with names.

Modules that pages documented under another name are found under that name, too: scripts and plugins of users say it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "meta_learning.inner_loop_optimizers": "meta_learning.inner_loop.base",
    "meta_learning.norm_layers": "meta_learning.networks.norms",
    "utils.config_schema": "utils.config.schema",
    "utils.observers": "experiment_parts.records.observers",
    "utils.prepare_dataset.from_dataset": "utils.prepare_dataset.forms.from_dataset",
}
"""Old name -> name of today, known once anything has imported `utils`, as every package of this project does.
`python_datasets` is a file at the root, since a script may import it first.
"""


PACKAGE = __name__.removesuffix("utils")  # see utils.paths, which is not there yet


class MovedModules(MetaPathFinder, Loader):
    """Gives the module of today for a name in MOVED: the same object, so that its classes are the same, too."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where to find a module that has moved; None: another one."""
        return ModuleSpec(fullname, self) if fullname.removeprefix(PACKAGE) in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of an empty one; `import` returns what stands in sys.modules."""
        sys.modules[module.__name__] = importlib.import_module(PACKAGE + MOVED[module.__name__.removeprefix(PACKAGE)])


sys.meta_path.append(MovedModules())  # behind the others: it is asked for what no file has
