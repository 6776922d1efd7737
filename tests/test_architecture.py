"""The arrows between the rooms go one way, without circles. Read from the imports; nothing is imported here."""

import ast
from pathlib import Path

import pytest

from utils.config import REPOSITORY_ROOT

ROOMS = {
    "train_maml_system": {"experiment_tools", "experiment_builder", "few_shot_learning_system", "data", "utils"},
    "experiment_tools": {"few_shot_classifier", "python_datasets", "experiment_builder", "few_shot_learning_system", "data",
                         "meta_learning", "meta_neural_network_architectures", "script_generation_tools", "utils"},
    "few_shot_classifier": {"python_datasets", "experiment_builder", "few_shot_learning_system", "data", "meta_learning",
                            "meta_neural_network_architectures", "utils"},
    "python_datasets": {"data", "utils"},
    "experiment_builder": {"utils"},
    "few_shot_learning_system": {"meta_learning", "meta_neural_network_architectures", "utils"},
    "data": {"utils"},
    "meta_learning": {"utils"},
    "meta_neural_network_architectures": {"meta_learning", "utils"},
    "script_generation_tools": {"utils"},
    "utils": set(),
}  # fmt: skip
"""Room -> rooms that it may import besides itself."""

FLOOR = ("utils.errors", "utils.config", "utils.config_messages", "utils.config_rules", "utils.config_schema", "utils.episodes", "utils.metrics", "utils.registry", "utils.reproducibility")
WITHOUT_TORCH = (
    "utils.config", "utils.config_help", "utils.config_rules", "utils.config_schema", "utils.command_line", "utils.plugins", "utils.registry", "utils.errors", "utils.episodes", "utils.archives", "utils.image_folders", "utils.packed_images", "utils.dataset_classes", "utils.prefetching",
    "utils.atomic_files", "utils.prepare_dataset", "utils.prepare_dataset.preparation", "utils.prepare_dataset.from_dataset",
    "script_generation_tools.generate_configs", "script_generation_tools.generate_scripts",
    "script_generation_tools.generated_files", "script_generation_tools.convert_config", "script_generation_tools.reference_configs",
    "script_generation_tools.fmu2_configs", "utils.estimator", "utils.ranks", "utils.stop_signals", "utils.gpu_ids", "experiment_tools.launch_ranks",
)  # fmt: skip


def room_of(module: str) -> str:
    return module.split(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    """Every module of the rooms: dotted name -> file."""
    paths = [
        path
        for room in ROOMS
        for path in (*REPOSITORY_ROOT.glob(f"{room}.py"), *REPOSITORY_ROOT.glob(f"{room}/**/*.py"))
    ]
    return {module_name(path): path for path in sorted(paths)}


MODULES = modules()


def imports(module: str, *, at_start_only: bool = False) -> set[str]:
    """Dotted names that a module imports: anywhere, or only what runs when the module itself is imported."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        if at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return found


def own_imports(module: str, *, at_start_only: bool = False) -> set[str]:
    return {name for name in imports(module, at_start_only=at_start_only) if room_of(name) in ROOMS}


def loaded_by(module: str) -> set[str]:
    """Everything that importing a module imports, through this project's own modules too."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imports(waiting.pop(), at_start_only=True) - found:
            found.add(name)
            if name in MODULES:
                waiting.append(name)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_the_rooms_below_it(module):
    allowed = ROOMS[room_of(module)] | {room_of(module)}
    upwards = {name for name in own_imports(module) if room_of(name) not in allowed}
    assert not upwards, f"{module} may not import {sorted(upwards)}"


@pytest.mark.parametrize("module", FLOOR)
def test_the_floor_imports_nothing_of_the_project_but_the_floor(module):
    assert own_imports(module) <= set(FLOOR)


def test_no_modules_import_each_other_in_a_circle():
    finished: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in finished or module not in MODULES:
            return
        for name in sorted(own_imports(module)):
            follow(name, (*path, module))
        finished.add(module)

    for module in MODULES:
        follow(module, ())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_wait_for_it(module):
    assert not {name for name in loaded_by(module) if room_of(name) in ("torch", "torchvision")}


@pytest.mark.parametrize("module", MODULES)
def test_torchvision_is_imported_only_where_it_is_used(module):
    assert "torchvision" not in {room_of(name) for name in imports(module, at_start_only=True)}


def test_there_is_no_room_called_misc_and_none_called_like_a_library():
    names = {path.stem for path in [*REPOSITORY_ROOT.glob("*.py"), *REPOSITORY_ROOT.glob("*/*.py")]}
    assert not names & {"misc", "helpers", "common", "util"}
    assert not list((REPOSITORY_ROOT / "datasets").glob("**/*.py"))
