"""The documentation as a site: whole, without warnings, and read without a network."""

import json
import re

import pytest

import mamlkit
from script_generation_tools import docs
from tests.tools.documented_commands import pages
from utils.errors import ConfigError
from utils.paths import REPOSITORY_ROOT

NAVIGATION = (REPOSITORY_ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", pages())
def test_every_page_is_in_the_navigation_and_lies_in_its_place(page):
    assert re.search(rf"- (.+: )?{re.escape(page)}$", NAVIGATION, re.MULTILINE)
    assert (REPOSITORY_ROOT / "site_pages" / page).resolve() == REPOSITORY_ROOT / page


def test_the_page_of_the_names_has_each():
    text = (REPOSITORY_ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: mamlkit\.(\w+)$", text, re.MULTILINE)) == [
        n for n in mamlkit.__all__ if n[0] != "_"
    ]


def test_the_docstrings_of_the_names_are_looked_for_where_they_are():
    """The builder of the site reads the modules behind `import mamlkit`, and only those that it is told."""
    (told,) = re.findall(r"preload_modules: \[(.+)\]", NAVIGATION)
    face = (REPOSITORY_ROOT / "mamlkit.py").read_text(encoding="utf-8").partition("if TYPE_CHECKING:")[2]
    imported = re.findall(r"^    from (\w+)[\w.]* import", face.partition("__all__")[0], re.MULTILINE)
    assert sorted(set(imported)) == told.split(", ")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """The addresses that a browser was given; the site has the pages index, docs/index and docs/train."""
    (tmp_path / "docs").mkdir()
    for name in ("index", "docs/index", "docs/train"):
        (tmp_path / f"{name}.html").touch()
    addresses = []
    monkeypatch.setattr(docs, "SITE", tmp_path)
    monkeypatch.setattr(docs, "build_site", lambda folder: None)
    monkeypatch.setattr(docs.webbrowser, "open", addresses.append)
    return addresses


def test_a_page_is_opened_and_its_address_printed(opened, tmp_path, capsys):
    assert docs.main([]) == docs.main(["train"]) == 0
    assert opened == [(tmp_path / "index.html").as_uri(), (tmp_path / "docs" / "train.html").as_uri()]
    assert capsys.readouterr().out.split() == opened


def test_a_page_that_is_not_there_names_those_that_are(opened, capsys):
    assert docs.main(["trian"]) == 1
    assert capsys.readouterr().err == 'there is no page "trian"; there are: index, train\n'
    assert opened == []


def test_what_builds_it_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(docs, "find_spec", lambda name: None if name == "material" else name)
    with pytest.raises(ConfigError, match=r"no material here: python -m pip install -r requirements-extras.txt"):
        docs.build_site(tmp_path)


@pytest.mark.full
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    docs.build_site(tmp_path, "--strict")
    built = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")
    }
    assert {page.replace("README", "index").replace(".md", ".html") for page in pages()} <= set(built)
    loads = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//")
    assert [name for name, text in built.items() if loads.search(text)] == []
    found = json.loads((tmp_path / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    assert {"docs/train.html", "docs/api.html#mamlkit.FewShotClassifier.meta_fit"} <= {
        entry["location"] for entry in found
    }
    for name in ("plain_maml.py", "first_contact.ipynb"):
        assert (tmp_path / "docs" / name).read_bytes() == (REPOSITORY_ROOT / "docs" / name).read_bytes()
