"""Runs that please OCR with what nobody would read are caught: real images, readers, evaluations and monitors.

Each evaluation is of made-up images, as a run would have come to draw them; nothing is trained.
"""

import numpy as np
import pytest
import torch

from pcpo_ray.config import files
from pcpo_ray.data.types import Handle, Prompt, Rollout, Scored, Task
from pcpo_ray.runs import intervals
from pcpo_ray.training import evaluation, monitors
from pcpo_ray.words.captions import Caption, captions, parse
from pcpo_ray.words.draw import PALETTE, draw, font
from pcpo_ray.workers.scorer import Scorer

TEXTS = captions("held_out")[::911][:16]
EACH = 2
WATCHED = ("ddddocr", "words_letters", "words_colours", "words_places", "words_tones")


@pytest.fixture(scope="module")
def run():
    watched = "[" + ", ".join(f"{{kind: {kind}}}" for kind in WATCHED) + "]"
    alone = "rewards=[{kind: ocr, score: exact, detect: false}]"
    return files.load("words_pcpo", [alone, f"evaluation.rewards={watched}", "evaluation.quality=null"])


@pytest.fixture(scope="module")
def scorer(run):
    torch.set_num_threads(1)
    return Scorer(run, torch.device("cpu"))


def misspelt(caption, seed):
    """As a base model draws it: every other image has a wrong letter, and all have a little noise."""
    word = caption.word
    if seed % 2:
        place = seed % len(word)
        word = word[:place] + "qxzkw"[len(word) - 1 - place] + word[place + 1 :]
    image = draw(Caption(word=word, ink=caption.ink, paper=caption.paper), seed)
    return np.clip(image + np.random.default_rng(seed).normal(0, 8, image.shape), 0, 255)


def well(caption, seed):
    image = draw(caption, seed)
    return np.clip(image + np.random.default_rng(seed).normal(0, 8, image.shape), 0, 255)


def faint(caption, seed):
    """At 4% of its contrast."""
    image = draw(caption, seed).astype(float)
    return image[0, 0] + 0.04 * (image - image[0, 0])


def torn(caption, seed):
    """With every other row left out."""
    image = draw(caption, seed)
    image[::2] = image[0, 0]
    return image


def drowned(caption, seed):
    """In noise."""
    image = draw(caption, seed)
    return np.clip(image + np.random.default_rng(seed).normal(0, 60, image.shape), 0, 255)


def tiny(caption, seed):
    """In letters of half the size."""
    from PIL import Image, ImageDraw

    ink, paper = caption.pairs[seed % len(caption.pairs)]
    image = Image.new("RGB", (64, 24), PALETTE[paper])
    ImageDraw.Draw(image).text((20 + seed % 5, 12), caption.word, font=font(8), fill=PALETTE[ink], anchor="lm")
    return np.asarray(image)


def black_on_white(caption, seed):
    """Right, and in the colours that are read best, whatever was asked for."""
    return draw(Caption(word=caption.word, ink="black", paper="white"), seed)


def in_one_place(caption, seed):
    """Right, and in every image the same."""
    return draw(caption, 0)


def evaluated(run, scorer, drawn, before=None):
    """The rows of an evaluation of images that `drawn` makes, as the loop records them, and its scores."""
    groups = []
    for n, text in enumerate(TEXTS):
        images = np.stack([np.round(drawn(parse(text), EACH * n + k)).astype(np.uint8) for k in range(EACH)])
        task = Task(step=0, position=n, prompt=Prompt(index=n, text=text), images=EACH, version=0, purpose="evaluate")
        scores, failures, _ = scorer.score(task, images)
        rollout = Rollout(
            task=task, trajectory=None, images=Handle(reference=None), bytes=0, checksum="", seconds=0.0, worker=""
        )
        groups.append(Scored(rollout=rollout, scores=scores, failures=failures, seconds=0.0))
    values = evaluation.table(run, groups)
    row = {"kind": "evaluation", **evaluation.evaluation_summary(run, groups, [], None)}
    if before is not None:
        row["changes"] = {name: intervals.change(before[name], value) for name, value in values.items()}
    return row, values


def judged(run, scorer, drawn):
    """The alarms of a run that drew badly at first, and like `drawn` at two evaluations in a row.

    One that watches OCR alone must have none.
    """
    first, before = evaluated(run, scorer, misspelt)
    later, _ = evaluated(run, scorer, drawn, before)
    rows = [{**first, "step": 0}, {**later, "step": 8}, {**later, "step": 16}]
    blind = files.changed(run, ["evaluation.rewards=[]"])
    assert monitors.judge(blind, rows).alarms == {}
    return monitors.judge(run, rows).alarms, first["rewards"], later["rewards"]


def test_a_run_that_learns_to_write_raises_no_alarm(run, scorer):
    alarms, first, last = judged(run, scorer, well)
    assert alarms == {}
    for reader in ("ocr_exact", "ddddocr"):
        assert 0.3 < first[reader]["mean"] < 0.7 and last[reader]["mean"] > 0.9


@pytest.mark.parametrize(
    ("drawn", "seen_by"),
    [
        (faint, {"words_letters", "words_colours"}),
        (torn, {"ddddocr", "words_letters"}),
        (drowned, {"words_letters", "words_colours"}),
        (tiny, {"words_letters"}),
        (black_on_white, {"words_colours"}),
        (in_one_place, {"words_places", "words_tones"}),
    ],
)
def test_what_pleases_ocr_alone_is_a_hack_and_named(run, scorer, drawn, seen_by):
    alarms, first, last = judged(run, scorer, drawn)
    assert last["ocr_exact"]["mean"] > first["ocr_exact"]["mean"] + 0.2
    assert list(alarms) == ["hacking"]
    assert seen_by <= {name for name in WATCHED if f"{name} fell" in alarms["hacking"]}
