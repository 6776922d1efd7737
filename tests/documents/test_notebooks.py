"""The notebooks of docs/ run from top to bottom, and are kept without what they print."""

import json

import pytest

from utils.paths import REPOSITORY_ROOT

NOTEBOOKS = sorted(path.name for path in (REPOSITORY_ROOT / "docs").glob("*.ipynb"))
LIMIT_S = 600
"""Of one cell; on a quiet machine the whole notebook takes less than two minutes of one core."""


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name):
    notebook = json.loads((REPOSITORY_ROOT / "docs" / name).read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert notebook["cells"][0]["source"][0].startswith("# ")


@pytest.mark.full
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="python -m pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="python -m pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("DATASET_DIR", str(tmp_path / "datasets"))
    monkeypatch.setenv("EXPERIMENTS_DIR", str(tmp_path / "experiments"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    docs = REPOSITORY_ROOT / "docs"
    notebook = nbformat.read(docs / name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(docs)}}
    )
    client.execute()  # raises what a cell raises, with its traceback
    assert sum(cell.cell_type == "code" and bool(cell.outputs) for cell in notebook.cells) > 5
