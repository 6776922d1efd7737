"""The arrows between the rooms go one way, without circles. Read from the imports; nothing is imported here."""

import ast
import functools
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from utils.paths import REPOSITORY_ROOT

LAYOUT = REPOSITORY_ROOT / "docs" / "layout.md"
WITHOUT_TORCH = (
    "utils.config",
    "utils.config.help",
    "utils.config.rules",
    "utils.config.schema",
    "utils.config.command_line",
    "utils.registry",
    "experiment_tools.new_method.__main__",
    "utils.errors",
    "utils.episodes.drawing",
    "utils.episodes.source",
    "experiment_parts.learner",
    "utils.files.archives",
    "utils.images.folders",
    "utils.images.packed",
    "utils.data_sources.dataset_classes",
    "utils.data_sources.write_task_lists",
    "utils.episodes.prefetching",
    "utils.files.atomic_files",
    "utils.prepare_dataset",
    "utils.prepare_dataset.preparation",
    "utils.prepare_dataset.forms.from_dataset",
    "utils.machine.stop_signals",
    "utils.machine.devices",
    "utils.ranks.rank",
    "utils.ranks.launch",
    "script_generation_tools.generate_configs",
    "script_generation_tools.generate_scripts",
    "script_generation_tools.generated_files",
    "script_generation_tools.convert_config",
    "script_generation_tools.reference_configs",
    "script_generation_tools.fmu2_configs",
    "few_shot_classifier.estimator",
)
PROGRAMS = ("utils.prepare_dataset.__main__", "utils.ranks.agent")
"""They stand on top of their wing: nothing imports them."""


def floor_plan() -> dict[str, set[str]]:
    """Room -> what it may import beside itself, as docs/layout.md draws it."""
    block = re.search(r"^## Floor plan$.*?^```text\n(.*?)^```", LAYOUT.read_text(encoding="utf-8"), re.M | re.S)[1]
    lines = re.sub(r"\n +", " ", block).splitlines()
    plan = {
        room: set(below.split())
        for room, _, below in (re.split(r"\s+(->|=)\s*", line, maxsplit=1) for line in lines if line)
    }
    ground = plan.pop("ground")
    plan |= dict.fromkeys(ground, ground)
    return {room: below - {"ground"} | (ground if "ground" in below else set()) for room, below in plan.items()}


PLAN = floor_plan()
GROUND = PLAN["utils.errors"]
"""Files that may import each other; `test_no_modules_import_each_other_in_a_circle` watches them."""
ROOMS = {room.split(".")[0] for room in PLAN}


def wing_of(module: str) -> str:
    """The room of the plan that a module lies in, the innermost one."""
    return max((room for room in PLAN if module == room or module.startswith(f"{room}.")), key=len, default="")


def lies_in(module: str, room: str, seen_from: str) -> bool:
    """Inside one house `a.b` and its wing `a.b.c` are two rooms; from another house a name means all that is in it."""
    if room_of(room) == room_of(seen_from):
        return wing_of(module) == room
    return module == room or module.startswith(f"{room}.")


MOST_ROOMS, MOST_ROOMS_BESIDE = 14, 16
OWN_FOLDERS_OF_TESTS = ("documents", "tools", "whole_runs")
PASSED_AROUND = ("config", "episodes", "learner", "source", "device", "settings", "meta_gradients", "tasks", "group")


def room_of(module: str) -> str:
    return module.split(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(rooms: Iterable[str]) -> dict[str, Path]:
    """Every module of some rooms: dotted name -> file."""
    paths = [
        path
        for room in rooms
        for path in (*REPOSITORY_ROOT.glob(f"{room}.py"), *REPOSITORY_ROOT.glob(f"{room}/**/*.py"))
    ]
    return {module_name(path): path for path in sorted(paths)}


MODULES = modules(ROOMS)
BENCHMARKS = modules(["benchmarks"])


@functools.cache
def imports(module: str, *, at_start_only: bool = False) -> frozenset[str]:
    """Dotted names that a module imports: anywhere and for types, too, or only what runs when it is imported itself."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_start_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES | BENCHMARKS else node.module)
        if at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((MODULES | BENCHMARKS)[module].read_text(encoding="utf-8")))
    return frozenset(found)


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
    own = wing_of(module)
    assert own or (len(MODULES[module].parts) > 1 and MODULES[module].name == "__init__.py"), (
        f"{module} is in no room of the plan"
    )
    upwards = {
        name for name in own_imports(module) if not any(lies_in(name, room, own) for room in {own, *PLAN.get(own, ())})
    }
    assert module in PROGRAMS or not upwards, f"{module} may not import {sorted(upwards)}"


def test_the_plan_has_no_circles():
    def below(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, " -> ".join((*path, room))
        for one in PLAN.get(room, set()) - GROUND:
            below(one, (*path, room))

    for room in PLAN:
        below(room, ())


def test_nothing_imports_a_program():
    assert not {name for module in MODULES for name in own_imports(module)} & set(PROGRAMS)


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()} - {REPOSITORY_ROOT}))
def test_a_folder_says_what_it_is_for_and_is_no_hall(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert text and "TODO" not in text
    rooms = [path for path in folder.glob("[a-z]*") if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert len(rooms) <= MOST_ROOMS, sorted(path.name for path in rooms)


@pytest.mark.parametrize("pattern", ["benchmarks/", "benchmarks/**/", "tests/*/**/"])
def test_a_folder_beside_the_house_is_no_hall(pattern):
    for folder in REPOSITORY_ROOT.glob(pattern):
        rooms = [path for path in folder.glob("[a-z]*") if path.suffix == ".py" or path.is_dir()]
        assert len(rooms) <= MOST_ROOMS_BESIDE, (folder, sorted(path.name for path in rooms))


def test_the_tests_lie_in_the_same_tree_as_what_they_hold():
    for path in (REPOSITORY_ROOT / "tests").rglob("test_*.py"):
        place = path.parent.relative_to(REPOSITORY_ROOT / "tests")
        if not place.parts or place.parts[0] not in OWN_FOLDERS_OF_TESTS:
            assert (REPOSITORY_ROOT / place).is_dir(), f"{path}: there is no folder {place}"
            wing = REPOSITORY_ROOT / place / path.stem.removeprefix("test_")
            assert not (wing / "__init__.py").is_file(), f"{path}: belongs into tests/{place}/{wing.name}/"


def test_no_modules_import_each_other_in_a_circle():
    finished: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in finished or module not in MODULES | BENCHMARKS:
            return
        for name in sorted(imports(module)):
            follow(name, (*path, module))
        finished.add(module)

    for module in MODULES | BENCHMARKS:
        follow(module, ())


def test_nothing_in_the_house_imports_what_stands_beside_it():
    assert not [module for module in MODULES for name in imports(module) if room_of(name) in ("benchmarks", "tests")]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_wait_for_it(module):
    assert not {name for name in loaded_by(module) if room_of(name) in ("torch", "torchvision")}


@pytest.mark.parametrize("module", MODULES)
def test_torchvision_is_imported_only_where_it_is_used(module):
    assert "torchvision" not in {room_of(name) for name in imports(module, at_start_only=True)}


@pytest.mark.parametrize("module", MODULES)
def test_what_is_passed_around_has_a_type(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    untyped = [
        f"line {node.lineno}: {node.arg}"
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and node.arg in PASSED_AROUND
        if node.annotation is not None and "Any" in ast.unparse(node.annotation).split(" | ")
    ]
    assert not untyped


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_is_called_frozen_is_written_to(module):
    """What a program may not assign it could still cache: a cached property writes into its object."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("frozen=True" in ast.unparse(one) for one in node.decorator_list):
            assert "cached_property" not in ast.unparse(node), node.name
        assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "object.__setattr__"), node.lineno


def test_the_inner_loop_is_written_twice():
    """With learning from it and without: no other loop takes inner steps."""

    def takes_a_step(node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("step", "take")
            and any(word.arg == "create_graph" for word in node.keywords)
        )

    loops = [
        f"{module}.{function.name}"
        for module, path in MODULES.items()
        if room_of(module) in ("few_shot_learning_system", "meta_learning")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.For | ast.While | ast.ListComp | ast.GeneratorExp)
        and any(map(takes_a_step, ast.walk(node)))
    ]
    assert loops == ["meta_learning.adaptation.path", "meta_learning.outer_gradients.training_steps.take_all"]


def test_one_file_says_where_the_checkout_is():
    """Programs that are started as a file put it on sys.path, before they can import what says it.

    measure_tree.py may not: it imports the modules of the checkout that it is asked about, which may be another one.
    """
    upwards = re.compile(r"__file__\).*(?:\.parent\.parent|\.parents\[)")
    paths = [*MODULES.values(), *REPOSITORY_ROOT.glob("benchmarks/*.py"), *REPOSITORY_ROOT.glob("tests/**/*.py")]
    found = [
        path
        for path in paths
        for line in path.read_text(encoding="utf-8").splitlines()
        if upwards.search(line) and not line.lstrip().startswith("sys.path") and path.name != "measure_tree.py"
    ]
    assert found == [REPOSITORY_ROOT / "utils" / "paths.py"]


def test_there_is_no_room_called_misc_and_none_called_like_a_library():
    names = {path.stem for path in [*REPOSITORY_ROOT.glob("*.py"), *REPOSITORY_ROOT.glob("*/*.py")]}
    assert not names & {"misc", "helpers", "common", "util"}
    assert not list((REPOSITORY_ROOT / "datasets").glob("**/*.py"))
