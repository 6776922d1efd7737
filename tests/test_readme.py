"""The README tells what is there: keys, files, links, scripts."""

import re

import pytest

from script_generation_tools.write_config_table import config_table, with_table
from utils.config import OLD_KEYS, REPOSITORY_ROOT, ExperimentConfig

README = (REPOSITORY_ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_config_keys_is_up_to_date():
    assert with_table(README) == README, "run: python script_generation_tools/write_config_table.py"


@pytest.mark.parametrize("key", [*ExperimentConfig.model_fields, *OLD_KEYS])
def test_every_key_has_its_row(key):
    assert f"| `{key}` |" in config_table()


def test_the_file_tree_names_what_is_there():
    tree = README.split("## Files")[1].split("```")[1]
    names = [name for line in tree.strip().splitlines() for name in re.split(r"\s{2,}", line)[0].split()]
    assert len(names) > 15
    assert not [name for name in names if not (REPOSITORY_ROOT / name).exists()]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_into_the_project_leads_somewhere(link):
    assert (REPOSITORY_ROOT / link).exists()


@pytest.mark.parametrize("script", sorted(set(re.findall(r"experiment_scripts/[\w+]+\.sh", README)) - {"experiment_scripts/my_photos_5way_1shot_seed0.sh"}))
def test_every_script_that_is_named_exists(script):
    assert (REPOSITORY_ROOT / script).exists()


@pytest.mark.parametrize("document", ["README.md", "docs/results.md", "docs/performance.md", "docs/datasets.md", "docs/methods.md", "CHANGELOG.md"])
def test_no_placeholder_is_left(document):
    text = (REPOSITORY_ROOT / document).read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_OUTPUT\b|\bPLACEHOLDER\b|\bTODO\b|^[A-Z]{6,}$", text, flags=re.MULTILINE)
