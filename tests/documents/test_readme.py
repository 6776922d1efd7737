"""The README and the page of the config keys tell what is there: keys, files, links, scripts."""

import re

import pytest

from script_generation_tools.write_config_table import PAGE, with_table
from utils.config import OLD_KEYS, ExperimentConfig
from utils.config.schema import fields
from utils.paths import REPOSITORY_ROOT

README = (REPOSITORY_ROOT / "README.md").read_text(encoding="utf-8")
CONFIG_KEYS = PAGE.read_text(encoding="utf-8")


def test_the_tables_of_config_keys_are_up_to_date():
    assert with_table(CONFIG_KEYS) == CONFIG_KEYS, "run: python script_generation_tools/write_config_table.py"


@pytest.mark.parametrize("key", [*fields(), *OLD_KEYS])
def test_every_key_has_its_row(key):
    assert CONFIG_KEYS.count(f"\n| `{key}` |") == 1


def test_the_keys_that_the_readme_names_exist_and_the_page_of_all_keys_is_linked():
    section = README.split("## Config keys")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", section)
    assert len(named) >= 5 and set(named) <= set(ExperimentConfig.model_fields)
    assert "](docs/config_keys.md)" in section


def test_the_file_tree_names_what_is_there():
    tree = README.split("## Files")[1].split("```")[1]
    names = [name for line in tree.strip().splitlines() for name in re.split(r"\s{2,}", line)[0].split()]
    assert len(names) > 15
    assert not [name for name in names if not (REPOSITORY_ROOT / name).exists()]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_into_the_project_leads_somewhere(link):
    assert (REPOSITORY_ROOT / link).exists()


@pytest.mark.parametrize("script", sorted(set(re.findall(r"experiment_scripts/[\w+]+\.sh", README))))
def test_every_script_that_is_named_exists(script):
    assert (REPOSITORY_ROOT / script).exists()


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/results.md",
        "docs/performance.md",
        "docs/datasets.md",
        "docs/methods.md",
        "docs/config_keys.md",
        "CHANGELOG.md",
    ],
)
def test_no_placeholder_is_left(document):
    text = (REPOSITORY_ROOT / document).read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_OUTPUT\b|\bPLACEHOLDER\b|\bTODO\b|^[A-Z]{6,}$", text, flags=re.MULTILINE)
