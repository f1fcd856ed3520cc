"""What docs/planning.md says of a model of 20 billion parameters is what `pcpo-ray plan` says, without any weights."""

import re
import shlex

import pytest

from pcpo_ray.commands import plan
from pcpo_ray.commands.plan import gpus, roles, stand_ins
from pcpo_ray.config import files
from tests.support import ROOT, part

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(1800)]

SIZE = ["sampling.height=1024", "sampling.width=1024"]
TEXT = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8").partition("## A model of 20 billion parameters")[2]
ROWS = re.findall(r"^\| (\d+)[^|]* \| `([^`]*)` \| ([^|]*) \| ([^|]*) \| (yes|no) \|$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def model():
    """The folder of Qwen-Image's published sizes, one for all rows: they share what is planned."""
    with stand_ins.sized(files.load("qwen_pcpo_ocr")) as sized:
        yield sized.run.model.path


def test_the_page_has_one_two_and_eight_cards():
    assert f"`pcpo-ray plan qwen_pcpo_ocr --gpu H100 {' '.join(SIZE)}`" in TEXT.replace("\n", " ")
    assert {cards for cards, *_ in ROWS} == {"1", "2", "8"} and {fits for *_, fits in ROWS} == {"yes", "no"}


def claimed(figures):
    return pytest.approx(
        {role: float(size) for role, size in re.findall(r"([a-z ]+?) ([\d.]+)(?:, |$)", figures)}, abs=0.06
    )


def rows():
    """All of them, of which CI takes those that share what is planned: an adapter, one image decoded at a time."""
    for row in ROWS:
        shared = "vae_slicing" in row[1] and "full" not in row[1]
        yield pytest.param(*row, id=f"{row[0]} {row[1]}", marks=() if shared else part.MORE)


@pytest.mark.parametrize(("cards", "words", "card", "host", "fits"), rows())
def test_each_row_takes_what_it_says_and_fits_or_does_not(model, cards, words, card, host, fits):
    overrides = shlex.split(words)
    local = overrides[:1] == ["--local"]
    run = files.load("qwen_pcpo_ocr", [*SIZE, *overrides[local:], f"model.path={model}"])
    if local:
        found = [roles.one_process(plan.in_one_process(run, gpu="H100"))]
    else:
        found = [role for role in (roles.sampler(run), roles.learner(run)) if role.processes]
    assert {role.role: role.total / gpus.GIB for role in found} == claimed(card)
    assert {role.role: sum(role.beside.values()) / gpus.GIB for role in found} == claimed(host)
    assert (fits == "yes") == all(role.total <= gpus.memory_of("H100") for role in found)
    assert int(cards) == sum(role.processes for role in found)
