"""Table and page: made from the stored runs alone, the same every time, and nothing on them runs or loads."""

import re
from pathlib import Path

import pytest

from pcpo_ray.commands.study import page, plan, results, table
from tests.support import stored

GAINS = {"ddpo": 0.1, "pcpo": 0.2}


def written(folder, **changes):
    study = stored.study(question="Is <b>PCPO</b> faster?", **changes)
    stored.store(folder, plan.main_runs(study, {}), stored.rising(GAINS), quality=True)
    markdown, html = page.write(results.read(study, folder), Path("studies/small.yaml"))
    return markdown.read_text(encoding="utf-8"), html.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return written(tmp_path_factory.mktemp("study"))


def visible(html):
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_page_has_every_arm_the_difference_and_the_tests_power(texts):
    for text in (texts[0], visible(texts[1])):
        assert "Held-out reward after 4 updates" in text and "+0.100 ± 0" in text
        assert "it cannot be below 0.25" in text and "no difference can be significant at 0.05" in text
        assert "2.00 (2.00 to 2.00)" in text
        assert "Nothing can be told from 3 seeds: p cannot be below 0.25." in text
        assert "pcpo against ddpo" in text
        assert "vendi" in text and "frechet" in text
    words = visible(texts[1])
    assert "3 seeds (1, 2, 3)" in words and "--report-only" in words
    assert "backend: in-process" in words


def test_arms_that_sample_alike_share_a_column_before_training(tmp_path):
    study = stored.study(arms={name: {} for name in ("one", "alike", "other")})
    start = {"one": 0.5, "alike": 0.5, "other": 0.6}
    stored.store(tmp_path, plan.main_runs(study, {}), lambda planned, step: start[planned.arm] + step, quality=True)
    page.write(results.read(study, tmp_path), tmp_path / "study.yaml")
    text = (tmp_path / "table.md").read_text(encoding="utf-8").partition("## Before training")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["measure", "one, alike", "other"]
    assert rows[2] == ["reward", "0.500 ± 0", "0.600 (+0.100 ± 0)"]
    assert {"frechet", "vendi"} < {row[0] for row in rows} and {len(row) for row in rows} == {3}


def test_markdown_has_a_cell_for_every_head(texts):
    rows = [line for line in texts[0].splitlines() if line.startswith("|")]
    assert len(rows) > 10
    blocks = re.split(r"\n\n", texts[0])
    for block in blocks:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_text_is_escaped_and_the_page_loads_nothing(texts):
    html = texts[1]
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html and "<b>PCPO" not in html
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^")\s]*)', html)
    assert addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)


def test_ids_are_unique_and_every_colour_of_an_arm_is_the_pages(texts):
    html = texts[1]
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"var\(--(\w+)\)", html))
    assert used <= set(re.findall(r"--(\w+):", html))


def test_arms_with_other_timesteps_have_a_chart_of_their_own(tmp_path):
    study = stored.study(arms={"ddpo": {}, "pcpo": {"set": {"steps": 4}}})
    wanted = plan.main_runs(study, {})
    stored.store(tmp_path, wanted, stored.rising(GAINS))
    found = results.read(study, tmp_path)
    for record in found.arms["pcpo"].records:
        record.steps[-1]["per_timestep"]["timestep"] = [900, 500, 100]
    _, html = page.write(found, tmp_path / "study.yaml")
    assert "timestep-clip-fraction-1" in html.read_text(encoding="utf-8")


def test_images_stand_before_and_after_for_every_arm(texts):
    alts = re.findall(r'alt="(\w+, step \d+): a red circle"', texts[1])
    assert alts == ["ddpo, step 0", "ddpo, step 4", "pcpo, step 0", "pcpo, step 4"]


def test_the_same_runs_give_the_same_bytes(tmp_path, texts):
    assert tuple(written(tmp_path)) == texts


def test_more_arms_than_colours_are_told_apart_by_their_lines(tmp_path):
    names = [f"arm{n}" for n in range(9)]
    study = stored.study(arms={name: {} for name in names}, seeds=[1, 2])
    stored.store(tmp_path, plan.main_runs(study, {}), stored.rising(dict.fromkeys(names, 0.1)))
    _, html = page.write(results.read(study, tmp_path), tmp_path / "study.yaml")
    keys = re.findall(r'class="key( dashed)?" style="border-color: var\(--(\w+)\)"', html.read_text(encoding="utf-8"))
    assert len(keys) == 9 and len(set(keys)) == 9


def test_arms_evaluated_with_different_samplers_are_marked(tmp_path):
    arms = {
        "ddpo": {},
        "hinge": {"set": {"objective.kind": "log_hinge"}, "varies": ["objective.kind"]},
        "mixed": {"set": {"credit": {"kind": "interpolate"}}, "varies": ["credit"]},
    }

    def text(folder, **changes):
        study = stored.study(arms=arms, seeds=[1, 2], **changes)
        stored.store(folder, plan.main_runs(study, {}), stored.rising(dict(zip(arms, (0.1, 0.2, 0.3), strict=True))))
        return table.markdown(results.read(study, folder))

    own = text(tmp_path / "own")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in own.splitlines() if line[:1] == "|"]
    assert {row[0]: row[3] for row in rows if row[0] in arms and len(row) == 6 and "±" in row[1]} == {
        "ddpo": "",
        "hinge": "ddpo",
        "mixed": "ddpo †",
    }
    assert "mixed against ddpo †" in own and "hinge against ddpo |" in own
    assert own.count("- † mixed and ddpo: each draws its evaluations with its own sampler") == 3
    assert "†" not in text(tmp_path / "alike", set={"evaluation.sampling": {"deterministic": True}})


def test_the_verdict_and_charts_come_before_the_long_tables(texts):
    html = texts[1]
    places = [html.index(text) for text in ("Nothing can be told", "after 4 updates</h2>", "Against the arm compared",
                                            "At the same held-out")]  # fmt: skip
    assert places == sorted(places)


def test_arms_that_cost_alike_have_no_chart_of_samples_or_seconds(texts, tmp_path):
    assert "By updates" in texts[1] and "By samples" not in texts[1] and "By seconds" not in texts[1]
    study = stored.study(seeds=[1, 2])
    stored.store(tmp_path, plan.main_runs(study, {}), stored.rising(GAINS))
    found = results.read(study, tmp_path)
    for record in found.arms["pcpo"].records:
        for row in record.steps:
            row["seconds"] = 20.0
    _, html = page.write(found, tmp_path / "study.yaml")
    assert "By seconds" in html.read_text(encoding="utf-8")
