"""Reference curves on the report: bands that hold what they say, and a run that is placed beside them, or not."""

import dataclasses
import json
import math
import re
from html import unescape

import numpy as np
import pytest

from pcpo_ray.commands.report import page, reference_curves
from pcpo_ray.commands.report.reference_curves import Place, ReferenceCurves, placed
from pcpo_ray.commands.study.plan import Planned
from pcpo_ray.config import files, recipes
from pcpo_ray.errors import ConfigError
from pcpo_ray.runs.folder import INPUTS
from pcpo_ray.runs.intervals import Estimate
from pcpo_ray.runs.records import read_record
from pcpo_ray.training import inputs
from tests.support import stored

SEEDS = (1, 2, 3)


def curves(recipe, *, gain=0.1, seeds=SEEDS, apart=0.01, baseline=None, digests=None, **changes):
    """Curves that begin around 0.5, each somewhere else, and gain by the last step, seed by seed `apart` more."""
    places = [place - (len(seeds) - 1) / 2 for place in range(len(seeds))]
    rows = [
        [0.5 - 0.1 * place + (gain + apart * place) * step / stored.STEPS for place in places]
        for step in stored.EVALUATED
    ]
    return ReferenceCurves(
        recipe=recipe,
        baseline=baseline,
        surroundings={"device": ("CPU",)},
        seeds=seeds,
        steps=stored.EVALUATED,
        rewards={name: tuple(map(tuple, rows)) for name in ("reward", "clip_score", "shapes_oracle")},
        inputs=digests or {},
        resolved=json.loads(json.dumps(files.plain(files.load(recipe, [f"{k}={v}" for k, v in changes.items()])))),
    )


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Two small recipes, and a function that puts curves where the package has its own."""
    (tmp_path / "recipes").mkdir()
    stored.recipes_in(tmp_path / "recipes", monkeypatch)
    monkeypatch.setattr(reference_curves, "FOLDER", tmp_path / "curves")

    def put(*several):
        reference_curves.FOLDER.mkdir(exist_ok=True)
        for one in several:
            (reference_curves.FOLDER / f"{one.recipe}.json").write_text(reference_curves.dumped(one))

    return put


def run_of(tmp_path, curve, *overrides, recipe="shapes_small"):
    """A run of a small recipe, with a curve of its own."""
    run = files.load(recipe, [*overrides])
    stored.one(tmp_path / "runs", Planned(arm="", seed=run.seed, run=run), curve)
    return tmp_path / "runs" / run.name


def steady(planned, step):
    """A curve that gains as those of `curves` do in the mean."""
    return 0.5 + step / 40


def words_on(folder):
    """The words of a run's page, without its tags and with single spaces."""
    html = page.write(folder).read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split()), html


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_band_holds_95_of_100_further_runs(shelf, seeds):
    rng = np.random.default_rng(0)
    one, tries = curves("shapes_small", seeds=tuple(range(1, seeds + 1))), 4000
    held = began = 0
    for _ in range(tries):
        starts, ends = rng.normal(9, 50, seeds + 1), rng.normal(3, 2, seeds + 1)
        rows = (starts[:-1], starts[:-1] + ends[:-1] / 2, starts[:-1] + ends[:-1])
        found = dataclasses.replace(one, rewards={"reward": tuple(tuple(row.tolist()) for row in rows)})
        band, start = found.changes("reward")[4], found.start("reward")
        held += band.low <= ends[-1] <= band.high
        began += start.low <= starts[-1] <= start.high
    assert abs(began / tries - 0.95) < 0.012
    assert abs(held / tries - 0.95) < 0.012  # three and a half standard errors


@pytest.mark.parametrize(
    "values, words",
    [
        ({0: 0.5, 2: 0.4, 4: 0.6}, "inside the band of B at each of 3 evaluations"),
        ({0: 0.5}, "inside the band of B at step 0"),
        ({0: 0.5, 1: 9.0, 2: 0.5, 6: 9.0}, "inside the band of B at each of 2 evaluations"),
        ({0: 0.5, 2: 0.61, 4: 0.7}, "above the band of B at steps 2 and 4, inside it at step 0"),
        ({0: 0.1, 2: 0.61, 4: 0.6}, "above the band of B at step 2, below it at step 0, inside it at step 4"),
        ({0: 0.1, 2: 0.1, 4: 0.1}, "below the band of B at steps 0, 2 and 4"),
        (
            {0: math.nan, 3: 0.5},
            "not compared with the band of B: this run has no later evaluation at a step of theirs",
        ),
    ],
)
def test_a_run_is_placed_at_the_steps_that_both_have(values, words):
    band = {step: Estimate(mean=0.5, low=0.4, high=0.6) for step in (0, 2, 4)}
    assert placed(values, band).said("B") == words


def test_seeds_that_all_agree_leave_room_for_rounding():
    band = {0: Estimate(mean=0.5, low=0.5, high=0.5)}
    assert placed({0: 0.5 + 1e-8}, band) == Place(above=(), inside=(0,), below=())
    assert placed({0: 0.5001}, band) == Place(above=(0,), inside=(), below=())


def test_a_run_of_a_recipe_is_drawn_over_its_band_and_its_baselines(shelf, tmp_path):
    shelf(curves("shapes_small", baseline="shapes_plain"), curves("shapes_plain", gain=0.05, apart=0.001))
    words, html = words_on(run_of(tmp_path, lambda planned, step: 0.55 + (0.09 if step == 2 else step / 40)))
    place = (
        "above the band of 3 seeds of shapes_small at step 2, inside it at step 4; above the band of 3 seeds of its "
        "baseline shapes_plain at steps 2 and 4"
    )
    assert f"Beside other seeds, the change of the held-out reward is {place}." in words
    assert f"This run's change is {place}. Bands begin where this run began" in words
    both = "the band of 3 seeds of shapes_small and that of 3 seeds of its baseline shapes_plain"
    assert f"This run's change is below {both} at steps 2 and 4." in words  # watched
    assert "they hold 95 of 100 further runs" in words
    assert words.count("recipe, 3 seeds") == words.count("baseline, 3 seeds") == 2
    assert 'id="beside-0-' in html and 'id="beside-1-' in html


@pytest.mark.parametrize(
    "overrides",
    [
        ["name=mine", "seed=7"],
        ["optimizer.micro_batch=2", "workers.learner.threads=2", "checkpoints.every=1", "monitors.patience=3"],
        ["evaluation.every=1", "evaluation.rewards=[]", "evaluation.train_count=3"],
        ["steps=6"],
    ],
)
def test_what_does_not_move_the_rewards_may_differ(shelf, tmp_path, overrides):
    shelf(curves("shapes_small"))
    run = files.load("shapes_small", overrides)
    assert reference_curves.differing(run, curves("shapes_small"), {}) == {}


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["optimizer.learning_rate=1e-3"], "optimizer.learning_rate (0.0003 -> 0.001)"),
        (["evaluation.count=4"], "evaluation.count (3 -> 4)"),
        (["steps=6", "optimizer.schedule=cosine"], "steps (4 -> 6), optimizer.schedule ('constant' -> 'cosine')"),
        (
            ["rollout={prompts: 3, images: 5}", "credit={kind: native}", "optimizer.epochs=2"],
            "credit.kind ('reweight' -> 'native'), rollout.prompts (2 -> 3), rollout.images (4 -> 5) and 1 more key",
        ),
    ],
)
def test_a_run_that_is_not_its_recipe_has_no_band_and_is_told_why(shelf, tmp_path, overrides, said):
    shelf(curves("shapes_small", baseline="shapes_plain"))
    words, html = words_on(run_of(tmp_path, steady, *overrides))
    assert (
        f"No reference band: this run is not shapes_small, whose 3 seeds are on record. It differs in {said}."
    ) in words
    assert "This run's change is" not in words and "Beside other seeds" not in words and "beside-" not in html


def test_a_changed_recipe_is_known_under_any_name_while_it_is_near(shelf, tmp_path):
    shelf(curves("shapes_small"), curves("shapes_plain"))
    near = run_of(tmp_path, steady, "name=mine", "optimizer.epochs=2")
    assert "this run is not shapes_small" in words_on(near)[0] and "(1 -> 2)." in words_on(near)[0]
    rollout = "rollout={prompts: 3, images: 5, max_staleness: 1}"
    far = run_of(tmp_path, steady, "name=far", "optimizer.epochs=2", rollout)
    assert "shapes_small" not in words_on(far)[0]


def test_without_curves_the_page_says_nothing_of_them(shelf, tmp_path):
    words, html = words_on(run_of(tmp_path, steady))
    assert "band of" not in words and "beside-" not in html


def test_another_model_under_the_same_name_is_no_reference(shelf, tmp_path):
    run = files.load("shapes_small")
    now = inputs.digests(inputs.of_run(run))
    folder = run_of(tmp_path, steady)
    (folder / INPUTS).write_text(inputs.dump(now))
    shelf(curves("shapes_small", digests=now))
    assert "inside the band of 3 seeds" in words_on(folder)[0]
    shelf(curves("shapes_small", digests={**now, "model.path": {**now["model.path"], "model_index.json": "0"}}))
    assert "It differs in model.path (other files)." in words_on(folder)[0]


def test_a_watched_reward_of_another_kind_has_no_band(shelf, tmp_path):
    watched = "[{kind: diversity, model: shapes-clip}]"
    one = curves("shapes_small", **{"evaluation.rewards": watched})
    one = dataclasses.replace(one, rewards={name: one.rewards["reward"] for name in ("reward", "diversity")})
    shelf(one)
    for model, count in (("shapes-clip", 1), ("ViT-B-32", 0)):
        rewards = f"evaluation.rewards={watched.replace('shapes-clip', model)}"
        record = read_record(run_of(tmp_path, steady, f"name=by-{model}", rewards))
        evaluated = [
            {**row, "rewards": {**row["rewards"], "diversity": row["rewards"]["reward"]}} for row in record.evaluated
        ]
        found = reference_curves.beside(dataclasses.replace(record, evaluated=evaluated))
        assert len(found.bands("diversity")) == count and len(found.bands("reward")) == 1


def test_a_baseline_that_is_evaluated_otherwise_is_left_out(shelf, tmp_path):
    plain = curves("shapes_plain", **{"evaluation.images": 4})
    shelf(curves("shapes_small", baseline="shapes_plain"), plain)
    words, _ = words_on(run_of(tmp_path, steady))
    assert "inside the band of 3 seeds of shapes_small" in words and "shapes_plain" not in words


def test_a_run_that_began_elsewhere_than_its_recipe_is_told(shelf, tmp_path):
    shelf(curves("shapes_small"))  # they begin at 0.6, 0.5 and 0.4: 4.303 * 0.1 * sqrt(4 / 3) is 0.497
    near = words_on(run_of(tmp_path, lambda planned, step: 0.99 + step / 40, "name=near"))[0]
    assert "inside the band of 3 seeds of shapes_small at each of 2 evaluations." in near and "began at" not in near
    far = words_on(run_of(tmp_path, lambda planned, step: 1.01 + step / 40, "name=far"))[0]
    said = "; the run began at 1.01, and 95 of 100 runs of shapes_small begin at 0.00317 to 0.997."
    assert f"inside the band of 3 seeds of shapes_small at each of 2 evaluations{said}" in far


def test_a_run_that_begins_at_nothing_has_its_band(shelf, tmp_path):
    one = curves("shapes_small")
    rewards = {name: ((0.0,) * 3, *one.rewards[name][1:]) for name in ("reward", "clip_score")}
    shelf(dataclasses.replace(one, rewards=rewards))
    words, _ = words_on(run_of(tmp_path, lambda planned, step: step / 8))
    assert "band of 3 seeds of shapes_small" in words and "began at" not in words


def test_a_seed_of_the_band_and_steps_beyond_it_are_said(shelf, tmp_path):
    shelf(dataclasses.replace(curves("shapes_small"), steps=(0, 1, 2)))
    words, _ = words_on(run_of(tmp_path, steady, "seed=2"))
    assert "This run's seed, 2, is one of the recipe's here, so it is no further run. They end at step 2." in words


def test_a_file_that_is_no_curves_is_named(shelf, tmp_path):
    shelf(curves("shapes_small"))
    path = reference_curves.FOLDER / "shapes_small.json"
    for text, said in (("{", "pcpo-ray study --reference shapes_small --local"), ("{}", "recipe")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said) as caught:
            reference_curves.known()
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=r"seeds are \[1, 2\]; expected at least 3"):
        curves("shapes_small", seeds=(1, 2))
    with pytest.raises(ValueError, match=r"has rows of \[3, 3, 3\] values; expected 2 rows"):
        dataclasses.replace(curves("shapes_small"), steps=(0, 2))


def test_curves_that_are_shipped_are_those_of_the_recipes_as_they_are():
    for name, one in reference_curves.known().items():
        again = f"make them anew: pcpo-ray study --reference {name} --local"
        assert one.recipe == name and name in recipes.names(), again
        run = files.load(name)
        now = inputs.digests(inputs.of_run(run))
        assert reference_curves.differing(run, one, now) == {}, again
        assert one.baseline == recipes.BASELINES.get(name), again
        assert run.seed not in one.seeds and {row.name for row in run.rewards} <= {*one.rewards}
