"""Every command and every piece of Python of the READMEs and of docs/*.md is run here, or says why it cannot be."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.tools.documented_commands import (
    LOOKS_LIKE_A_COMMAND,
    SHELL,
    Block,
    all_blocks,
    all_commands,
    blocks_of,
    commands_in_sentences,
    commands_of,
    pages,
    problem_of_command,
    problems_of_marks,
    with_counts,
)
from tests.tools.documented_world import RUNS_BEFORE, bring_readers_files, copy_project, run_command, run_python
from utils.paths import REPOSITORY_ROOT

PAGES = pages()


def test_a_block_has_the_comments_right_above_it():
    text = (
        "<!-- not run, needs hours | train -->\n<!-- run with --total_epochs 1 -->\n\n```bash\ntrain \\\n  --more   # "
        "why\n\nother\n```\n"
        "<!-- not run, needs a GPU -->\nWords between.\n\n   ```bash\n   for x in 1 2; do\n     echo $x\n   done\n   "
        "```\n"
    )
    first, second = blocks_of("page.md", text)
    assert [command.text for command in commands_of(first)] == ["train \\\n  --more   # why", "other"]
    assert [command.reasons for command in commands_of(first)] == [("hours",), ()]
    assert [command.appended for command in commands_of(first)] == ["--total_epochs 1"] * 2
    assert second.marks == ()
    assert [command.text for command in commands_of(second)] == ["for x in 1 2; do\n  echo $x\ndone"]


def test_comments_that_mean_nothing_are_named():
    block = blocks_of(
        "page.md", "<!-- not run, needs courage -->\n<!-- not run, needs hours | walk -->\n```bash\nrun\n```\n"
    )[0]
    assert list(problems_of_marks(block)) == [
        'page.md:3: "courage" is no reason; known are a GPU, a cluster, hours, the network',
        'page.md:3: no command contains "walk"',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bash experiment_scripts/nothing.sh 0", "experiment_scripts/nothing.sh does not exist"),
        ("bash experiment_scripts/quickstart.sh 0 --batch_sise 4", 'did you mean "batch_size"'),
        ("python -m experiment_tools.runs --sorted val", "experiment_tools/runs.py has no option --sorted"),
        ("cd script_generation_tools && python make_configs.py", "make_configs.py does not exist"),
    ],
)
def test_a_command_that_cannot_work_is_found_without_running_it(text, message):
    block = Block("page.md", 1, "bash", text + "\n", ())
    assert message in problem_of_command(commands_of(block)[0])


@pytest.mark.parametrize("page", PAGES)
def test_each_command_has_exactly_one_status(page):
    problems = []
    for block in all_blocks():
        if block.page != page:
            continue
        problems += problems_of_marks(block)
        if block.language in SHELL:
            problems += [
                f"{block.place}: several reasons for {c.text}" for c in commands_of(block) if len(c.reasons) > 1
            ]
        elif block.language in ("", "text", "plain") and LOOKS_LIKE_A_COMMAND.search(block.text):
            problems.append(f"{block.place}: commands belong into a block that says bash")
    assert not problems


@pytest.mark.parametrize("page", PAGES)
def test_what_commands_name_is_there(page):
    """Scripts, options and config keys; also of the commands that are not run, and of those within sentences."""
    commands = [command for command in all_commands() if command.block.page == page] + commands_in_sentences(page)
    assert [problem for command in commands if (problem := problem_of_command(command))] == []


def test_the_counts_in_the_index_are_those_of_the_pages():
    text = (REPOSITORY_ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert with_counts(text) == text, "run: python tests/tools/documented_commands.py"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_the_index_leads_to_every_page_and_every_link_leads_somewhere(page):
    text = (REPOSITORY_ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (REPOSITORY_ROOT / "docs" / link).exists()] == []
    index = (REPOSITORY_ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert page == "docs/README.md" or f"]({Path(page).name})" in index


def test_links_to_headings_lead_to_headings():
    wrong = []
    for page in PAGES:
        for target, anchor in re.findall(
            r"\]\(([^)#:]*)#([^)]+)\)", (REPOSITORY_ROOT / page).read_text(encoding="utf-8")
        ):
            path = (REPOSITORY_ROOT / page).parent / target if target else REPOSITORY_ROOT / page
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}:
                wrong.append(f"{page}: {target}#{anchor}")
    assert wrong == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The scratch copy with the reader's files: (folder of the project, home folder)."""
    folder = tmp_path_factory.mktemp("reader")
    root, home = folder / "project", folder / "home"
    copy_project(root)
    home.mkdir()
    bring_readers_files(root, home)
    return root, home


@pytest.fixture(scope="module")
def prepared_with_runs(prepared):
    """The same with a few finished runs."""
    for name in RUNS_BEFORE:
        code, printed, _ = run_command(f"bash 'experiment_scripts/{name}.sh'", *prepared)
        assert code == 0, printed
    return prepared


def copied(prepared, tmp_path):
    """A copy of the scratch copy, for one test alone: (folder of the project, home folder)."""
    root, home = tmp_path / "project", tmp_path / "home"
    for source, target in zip(prepared, (root, home), strict=True):
        shutil.copytree(source, target, symlinks=True)
    return root, home


def run_commands(commands, files, root, home):
    """Run commands in order; a file of the page is there before the commands below it, and `cd` holds to the end of
    a block.
    """
    files, block_before, folder = list(files), None, root
    for command in commands:
        folder = (
            folder if command.block is block_before else root
        )  # a block is pasted as a whole, into a terminal in the checkout
        block_before = command.block
        for block in [block for block in files if block.page == command.block.page and block.line < command.block.line]:
            write_file(block, root)
            files.remove(block)
        text = f"{command.text} {command.appended}" if command.appended else command.text
        code, printed, folder = run_command(text, root, home, folder)
        assert code == 0, f"{command.block.place}: {command.text}\n{printed}"


def files_of_pages():
    """The blocks that readers put into files."""
    return [block for block in all_blocks() if block.marks_of("write to") or block.marks_of("append to")]


def write_file(block, root):
    """Put a block into the file that the comment above it names."""
    for kind, mode in (("write to", "w"), ("append to", "a")):
        for name in block.marks_of(kind):
            with (root / name).open(mode, encoding="utf-8") as file:
                file.write(("\n" if mode == "a" else "") + block.text)


def test_the_quick_commands_work(prepared, tmp_path):
    """Those without torch, each once, though several pages have it."""
    once = {tuple(shlex.split(command.text, comments=True)): command for command in all_commands() if command.is_quick}
    assert len(once) > 10
    run_commands(once.values(), files_of_pages(), *copied(prepared, tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.page == page for block in all_blocks())])
def test_all_commands_and_python_of_a_page_work(page, prepared_with_runs, tmp_path):
    root, home = copied(prepared_with_runs, tmp_path)
    files = files_of_pages()
    run_commands(
        [command for command in all_commands() if command.block.page == page and command.runs], files, root, home
    )
    python = [
        block
        for block in all_blocks()
        if block.page == page
        and block.language == "python"
        and block not in files
        and not block.marks_of("not run, needs")
    ]
    if python:
        code, printed = run_python([(block.place, block.text) for block in python], root, home)
        assert code == 0, f"{page}\n{printed}"
