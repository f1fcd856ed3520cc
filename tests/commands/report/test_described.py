"""The page of a run whose rewards say what they saw: the share stands first, and what was read under each image."""

import re

import numpy as np
import pytest

from pcpo_ray.commands.report.page import write
from pcpo_ray.commands.results import load_run
from pcpo_ray.config import files
from pcpo_ray.runs import intervals, records
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.words.captions import captions, parse
from pcpo_ray.words.draw import draw
from tests.support import small
from tests.support.running import go

PROMPTS = captions("held_out")[::1999][:8]
WORD = "{kind: ocr, score: exact, detect: false}"
NASTY = '<b>"&</b>'


def recorder(folder, *overrides):
    given = (f"name={folder.name}", "steps=4", "evaluation.count=8", "evaluation.rewards=[{kind: ddddocr}]")
    return Recorder.create(LocalFolder(local=folder), files.load("words_pcpo", [*given, *overrides]))


def evaluate(record, step, read, *, rewards=("ocr_exact", "words_colours"), text="moon"):
    """An evaluation of two images a prompt, in which the first `read` of the 16 are read exactly."""
    exact = (np.arange(16) < read).astype(float).reshape(8, 2)
    values = {name: exact if name == "ocr_exact" else np.ones((8, 2)) for name in rewards}
    values = {"reward": sum(values.values()), **values, "ddddocr": exact}
    columns = {
        "step": np.full(16, step),
        "prompt": [prompt for prompt in PROMPTS for _ in range(2)],
        "position": np.repeat(np.arange(8), 2),
        "sample": np.tile(np.arange(2), 8),
        **{name: value.ravel() for name, value in values.items()},
    }
    if text is not None:
        columns["described"] = [{"ocr_exact": f"{text}{step}", "ddddocr": ""}] * 16
    record.samples("evaluations.parquet", step, columns)
    record.write_images(step, {n: np.stack([draw(parse(prompt), step)] * 2) for n, prompt in enumerate(PROMPTS)})
    estimates = {name: intervals.estimate(value).row() for name, value in values.items()}
    record.record("evaluation", step, {"rewards": estimates, "images": 16, "seconds": 2.0})


def page(record):
    return write(record.folder).read_text(encoding="utf-8")


def visible(html):
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def verdict(html):
    return visible(re.search(r'<section class="verdict.*?</section>', html, flags=re.DOTALL)[0])


def test_the_share_before_and_after_is_the_first_number_with_its_interval(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 4)
    evaluate(record, 4, 12)
    found = records.read_record(record.folder)
    after, gained = found.levels("ocr_exact")[4], found.changes("ocr_exact")[4]
    said = verdict(page(record))
    assert said.startswith("25% → 75% words read exactly , before and after training. For other")
    assert f"For other prompts like these the last is {after.low:.0%} to {after.high:.0%} (95% interval)." in said
    assert f"▲ rose: +50 points, 95% interval +{100 * gained.low:.0f} to +{100 * gained.high:.0f}" in said
    assert re.search(r"▲ The held-out reward rose: \+0\.50, 95% interval \+0\.\d+ to \+0\.\d+, 16 images", said)


def test_the_verdict_stays_that_on_all_trained_rewards(tmp_path):
    record = recorder(tmp_path / "run", f"rewards=[{WORD}, {{kind: words_colours, weight: -3}}]")
    evaluate(record, 0, 4)
    evaluate(record, 4, 4)
    html = page(record)
    assert "25% → 25%" in verdict(html) and "◆ The held-out reward did NOT clearly change" in verdict(html)
    assert 'class="verdict unclear"' in html


def test_before_the_second_evaluation_the_first_share_is_told(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 4)
    said = verdict(page(record))
    assert (
        said.startswith("25% words read exactly , before training. For other prompts like these the first")
        and "No verdict" in said
    )


@pytest.mark.parametrize("rewards", ["[{kind: ocr, detect: false, score: ctc}]", f"[{WORD[:-1]}, weight: -1}}]"])
def test_what_is_no_share_or_is_trained_against_leads_no_page(tmp_path, rewards):
    record = recorder(tmp_path / "run", f"rewards={rewards}")
    name = record.run.rewards[0].name
    evaluate(record, 0, 4, rewards=(name,))
    evaluate(record, 4, 12, rewards=(name,))
    assert "%" not in verdict(page(record)).partition("95% interval")[0]


def test_what_was_read_stands_under_each_image_and_is_escaped(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 4, text=NASTY)
    evaluate(record, 4, 12)
    html = page(record)
    pairs = re.findall(r"<figure.*?</figure>", html, flags=re.DOTALL)
    escaped = "&lt;b&gt;&#34;&amp;&lt;/b&gt;0"
    assert len(pairs) >= 12 and NASTY not in html
    for one in [pair for pair in pairs if "enlarge" in pair]:
        before, after = re.findall(r'<img src.*?<span class="said">(.*?</span>)</span>', one, flags=re.DOTALL)
        assert f"<i>ocr_exact</i> <b>{escaped}</b>" in before and "<i>ocr_exact</i> <b>moon4</b>" in after
        assert "<i>ddddocr</i> nothing" in before
    strips = re.search(r'<table class="strips wide">.*?</table>', html, flags=re.DOTALL)[0]
    assert strips.count("<b>moon4</b>") == strips.count(escaped) == 8


def test_wide_images_stand_above_each_other_with_their_own_pixels(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 4)
    evaluate(record, 4, 12)
    html = page(record)
    pairs = re.findall(r'<figure class="([^"]*)">\s*<label class="zoom">', html)
    assert len(pairs) == 12 and all("wide" in names.split() for names in pairs)
    assert "before training (above) and after step 4 (below)" in visible(html) and html.count('class="sharp"') >= 24


def test_images_of_rewards_that_say_nothing_have_nothing_under_them(tmp_path):
    record = recorder(tmp_path / "run")
    evaluate(record, 0, 4, text=None)
    evaluate(record, 4, 12, text=None)
    assert 'class="said"' not in page(record) and "what rewards read" not in page(record)


def test_a_real_run_records_and_shows_what_its_reward_saw(small_sd, tmp_path):
    recorder = go(small.run(small_sd, rewards="[{kind: 'tests.support.custom:Sees'}]"), tmp_path / "run")
    made = load_run(recorder.folder).images[2]
    assert all(set(image.scores) == {"reward", "Sees"} for image in made)
    texts = [image.described["Sees"] for image in made]
    assert texts == [f"{image.prompt}, as bright as {image.scores['Sees']:.1f}" for image in made]
    html = page(recorder)
    assert all(html.count(f"<b>{text}</b>") >= 1 for text in texts)
    assert records.evaluations(recorder.folder, 2).keys() == {"reward", "Sees"}
