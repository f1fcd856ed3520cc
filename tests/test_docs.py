"""The documentation: the numbers of its drawing, and the site with every link."""

import re
import runpy
import subprocess
import sys

import pytest

from pcpo_ray import config
from pcpo_ray.config.base import kinds, members
from tests.support import ROOT


def test_the_drawn_weights_are_those_that_the_page_names(monkeypatch):
    monkeypatch.chdir(ROOT)
    _, native, reweight = runpy.run_path("docs/draw_weights.py")["weights"]()
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"!\[Native weights of eight DDIM steps: (.*)\. PCPO's are (.*) at each step\.\]", page)
    assert drawn[0].split(", ") == [f"{weight:.1f}" for weight in native]
    assert {drawn[1]} == {f"{weight:.1f}" for weight in reweight}
    largest = max(native)
    assert f"({largest:.1f} against {sum(native) - largest:.1f})" in page
    shown = (ROOT / "docs" / "weights.svg").read_text(encoding="utf-8")
    assert all(f">{weight:.1f}</text>" in shown for weight in (*native, *reweight))


def test_every_kind_of_credit_and_objective_is_on_the_page_of_weightings():
    page = (ROOT / "docs" / "weighting.md").read_text(encoding="utf-8")
    table = page[page.index("| in the config |") : page.index("The formulas are in")]
    others = ("clipped_ratio", "log_hinge")  # the two objectives that all other rows are for
    found = [f"credit `{kind}`" for cls in members(config.Credit) for kind in kinds(cls)]
    found += [f"objective `{kind}`" for cls in members(config.Objective) for kind in kinds(cls) if kind not in others]
    assert [name for name in found if f"| {name} |" not in table] == []


@pytest.mark.recipes
def test_the_site_is_built_and_no_link_in_it_is_broken(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "site" / "docs" / "concepts" / "index.html"
    assert "Proportionate Credit" in page.read_text(encoding="utf-8")
