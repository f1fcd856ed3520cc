"""docs/api.md and the example notebook, as they are read: their blocks are run in order."""

import ast
import json
import re
import sys

import pytest

from tests.support import ROOT

PAGE = ROOT / "docs" / "api.md"
NOTEBOOK = ROOT / "examples" / "first_run.ipynb"


def cells():
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return found, ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code"]


def run_in_order(blocks, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    known = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number}", "exec"), known)
    return known


def test_the_page_about_python_does_what_it_says(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    known = run_in_order(blocks, tmp_path, monkeypatch)
    assert len(blocks) == 5 and len(known["images"]) == 4 and (tmp_path / "rings.png").is_file()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"first", "second"}


def test_the_example_notebook_is_whole_and_holds_no_output():
    found, blocks = cells()
    assert found["nbformat"] == 4 and len(blocks) >= 5
    for block in blocks:
        ast.parse(block)
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in found["cells"] if "outputs" in cell
    )


@pytest.mark.recipes
def test_the_example_notebook_runs(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    _, blocks = cells()
    known = run_in_order(blocks, tmp_path, monkeypatch)
    assert known["run"].ending == "finished" and (tmp_path / "runs" / "redder").is_dir()
