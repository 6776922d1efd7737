"""Nothing that is read can run: no pickle, no eval, no shell, no import by a name from outside.

Read from the sources.
"""

import ast
import re

import pytest

from tests.documents.test_architecture import MODULES
from utils.paths import REPOSITORY_ROOT
from utils.registry.choices import KINDS
from utils.registry.choices import choices as built_in

FORBIDDEN_IMPORTS = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "importlib",
    "runpy",
    "code",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "np.load",
    "numpy.load",
    "np.save",
    "yaml.load",
}
RUNS_PLUGINS = REPOSITORY_ROOT / "utils" / "registry" / "__init__.py"
"""The one file that may execute Python: what --plugin names on the command line.

A config cannot (tests/utils/test_plugins.py).
"""
KNOWS_OLD_NAMES = REPOSITORY_ROOT / "utils" / "__init__.py"
"""The one file that imports by name: the names of its own table (tests/documents/test_moved_modules.py)."""
STARTS_COMMANDS = REPOSITORY_ROOT / "mamlkit.py"
"""The one file that runs modules by name: those of `utils.paths.COMMANDS` and `PARTS`."""
IMPORTS_CHOICES = REPOSITORY_ROOT / "utils" / "registry" / "choices.py"
"""Imports files of our own by the names under which it has found them in their folders."""
ALLOWED = {
    IMPORTS_CHOICES: ["importlib"],
    STARTS_COMMANDS: ["importlib", "runpy"],
    RUNS_PLUGINS: [
        "importlib",
        "importlib.util",
        "importlib.abc.Loader",
        "importlib.abc.MetaPathFinder",
        "importlib.machinery.ModuleSpec",
        "importlib.machinery.PathFinder",
    ],
    KNOWS_OLD_NAMES: [
        "importlib",
        "importlib.abc.Loader",
        "importlib.abc.MetaPathFinder",
        "importlib.machinery.ModuleSpec",
    ],
}
SOURCES = sorted({*MODULES.values(), *REPOSITORY_ROOT.glob("benchmarks/*.py")})


def dotted(node):
    """`a.b.c` of a called expression; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        front = dotted(node.value)
        return f"{front}.{node.attr}" if front else ""
    return ""


def is_forbidden(module):
    harmless = ("importlib.metadata", "importlib.util.find_spec")  # they tell versions, and whether a package is there
    return module.split(".")[0] in FORBIDDEN_IMPORTS and not f"{module}.".startswith(
        tuple(f"{name}." for name in harmless)
    )


def reads_weights_only(call):
    """torch's own restricted reader: tensors and what `safe_globals` lists. Checkpoints of the reference need one."""
    named = {k.arg: k.value for k in call.keywords}
    value = named.get("weights_only")
    return dotted(call.func) == "torch.load" and isinstance(value, ast.Constant) and value.value is True


def problems(source):
    """What must not be in a source text, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names if is_forbidden(a.name)]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # An error type reads nothing; torch raises it.
            found += [(node.lineno, name) for name in names if is_forbidden(name) and name != "pickle.UnpicklingError"]
        elif isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS and not reads_weights_only(node):
                found.append((node.lineno, dotted(node.func)))
            shell = [
                k
                for k in node.keywords
                if k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
            ]
            pickled = [k for k in node.keywords if k.arg == "allow_pickle"]
            found += [(node.lineno, k.arg) for k in (*shell, *pickled)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY_ROOT).as_posix())
def test_no_source_runs_what_it_reads(path):
    found = problems(path.read_text(encoding="utf-8"))
    assert [what for _, what in found] == ALLOWED.get(path, [])


GUARDED = ("prints_user_errors", "on_console", "guarded_output()")
"""What stands around a main function, so that names of files command no terminal and a lost one ends nothing
(tests/utils/test_words.py).
"""
UNGUARDED = {
    "mamlkit.py",  # becomes another program
    "script_generation_tools/write_config_table.py",
    "utils/images/decoding.py",  # speaks through pipes to the program that started it
    "utils/ranks/agent.py",  # becomes torchrun
}


def test_every_program_prints_through_a_guard():
    unguarded = set()
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":' not in text:
            continue
        mains = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        around = {ast.unparse(decorator) for main in mains for decorator in main.decorator_list}
        around |= {ast.unparse(item) for node in ast.walk(ast.Module(mains, [])) if isinstance(node, ast.With)
                   for item in node.items}  # fmt: skip
        if not around & {*GUARDED, "Console(quiet=quiet) as console"}:
            unguarded.add(path.relative_to(REPOSITORY_ROOT).as_posix())
    assert unguarded == UNGUARDED


BOUNDED_READER = REPOSITORY_ROOT / "utils" / "files" / "reading.py"
READ_OWN_TEXT = {
    "script_generation_tools/fmu2_configs.py": 1,  # what it has just written
    "few_shot_classifier/classifier.py": 1,  # what it has just written
    "experiment_tools/sweep/trials.py": 1,  # values that it has handed to Optuna
    "experiment_tools/export/network.py": 1,  # a program of its own, in an exported folder
    "utils/config/schema.py": 1,  # what pydantic has just written
    "utils/images/decoding.py": 1,  # orders and answers between a process and those that it started
    "utils/images/packed.py": 1,
    "utils/ranks/rank.py": 1,  # messages between the processes of a run
    "utils/ranks/command.py": 1,
    "utils/ranks/group.py": 4,
}
"""Where JSON is read that comes from no file of anybody else."""


def test_one_place_reads_json_and_toml_of_files():
    """It alone knows the bounds: size, depth, keys given twice, no pipes (tests/utils/files/test_reading.py)."""
    found = {}
    for path in MODULES.values():
        calls = [
            dotted(n.func) for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)
        ]
        count = sum(call in ("json.load", "json.loads", "tomllib.load", "tomllib.loads") for call in calls)
        if count and path != BOUNDED_READER:
            found[path.relative_to(REPOSITORY_ROOT).as_posix()] = count
    assert found == READ_OWN_TEXT


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from importlib import import_module",
        "eval(x)",
        "os.system('convert ' + path)",
        "torch.load(path)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "np.load(path, allow_pickle=True)",
        "exec(text)",
        "__import__(name)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from pickle import UnpicklingError, loads",
    ],
)
def test_the_check_finds_what_it_looks_for(text):
    assert problems(text)


def test_what_is_started_by_name_is_a_name_of_the_table_of_commands():
    tree = ast.parse(STARTS_COMMANDS.read_text(encoding="utf-8"))
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and dotted(n.func).startswith("runpy")]
    assert ast.unparse(call.args[0]) == "module_of(name)"


def test_what_is_imported_by_name_is_a_name_of_the_table_of_moved_modules():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (KNOWS_OLD_NAMES, RUNS_PLUGINS)]
    calls = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert [ast.unparse(call) for call in calls if dotted(call.func) == "importlib.import_module"] == [
        "importlib.import_module(PACKAGE + MOVED[module.__name__.removeprefix(PACKAGE)])",
        "importlib.import_module(PACKAGE + module.__name__)",  # of a spec that stands for a module of ours alone
    ]


def test_what_is_imported_for_a_choice_is_a_file_of_ours():
    choices = [choice for kind in KINDS for choice in built_in(kind).values()]
    assert len(choices) > 15
    for choice in choices:
        assert (REPOSITORY_ROOT / f"{choice.module.replace('.', '/')}.py").is_file()
        assert choice.module.startswith("meta_learning.")


def test_the_restricted_reader_and_its_error_are_allowed():
    assert not problems("from pickle import UnpicklingError\ntorch.load(path, weights_only=True)")


def test_scripts_evaluate_no_text():
    for path in (*REPOSITORY_ROOT.glob("*.sh"), *REPOSITORY_ROOT.glob("script_generation_tools/*.sh")):
        assert not re.search(r"\b(eval|source)\b", path.read_text(encoding="utf-8")), path
