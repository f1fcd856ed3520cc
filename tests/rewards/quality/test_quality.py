"""From a scorer's features to an evaluation's numbers, and through a run."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.data.tasks import evaluation_tasks, watched_training_tasks
from pcpo_ray.data.types import Prompt, Task
from pcpo_ray.errors import ConfigError, QualityError, RewardError
from pcpo_ray.rewards import quality
from pcpo_ray.rewards.quality import diversity, frechet, neighbours
from pcpo_ray.runs import records
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.local import LocalStages
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.workers.scorer import Scorer
from tests.support import small

CPU = torch.device("cpu")
CLIP = "{features: {kind: clip}}"
BASE = "{features: {kind: clip}, reference: {kind: base}, neighbours: 2}"


def task(purpose="evaluate"):
    return Task(step=0, position=0, prompt=Prompt(index=0, text="x"), images=3, version=0, purpose=purpose)


def images(seed=0, count=3):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def measured(seed, count=4, size=(64, 64)):
    return {"features": np.random.default_rng(seed).normal(size=(count, 6)), "size": np.array(size)}


def test_a_scorer_measures_evaluations_alone_where_the_images_are():
    run = small.run("model", evaluation__quality=CLIP)
    scorer = Scorer(run, CPU)
    _, failures, found = scorer.score(task(), images())
    assert found["features"].shape == (3, 128) and found["size"].tolist() == [16, 16] and not failures
    assert scorer.score(task("train"), images())[2] == {}
    assert Scorer(small.run("model"), CPU).score(task(), images())[2] == {}


def test_images_of_several_prompts_are_compared_inside_each():
    measures = Scorer(small.run("model", evaluation__quality=CLIP), CPU).measures
    assert measures is not None
    seen = []

    def distances(images):
        seen.append(len(images))
        return np.full(len(images), float(len(seen)))

    measures.lpips = distances
    found = measures(images(count=6), each=2)
    assert seen == [2, 2, 2] and found["lpips"].tolist() == [1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(found["features"], measures.extract(images(count=6)))
    assert quality.rows_of(found, slice(2, 4))["lpips"].tolist() == [2, 2]


def test_features_that_fail_are_missing_with_their_cause_scores_stay():
    scorer = Scorer(small.run("model", evaluation__quality=CLIP), CPU)
    scorer.measures.extract = lambda images: np.full((len(images), 4), np.nan)
    scores, failures, found = scorer.score(task(), images())
    assert found == {} and "not finite" in failures["quality"]
    assert np.isfinite(scores["jpeg_compressibility"]).all()


def test_the_numbers_are_those_of_the_estimators(tmp_path):
    settings = config.Quality(features=config.ClipFeatures(), reference=config.BaseReference(), neighbours=3)
    assess = quality.Assessor(settings, tmp_path, CPU)
    first, now = [measured(n) for n in range(5)], [measured(n) for n in range(5, 10)]
    assess.keep(0, first)
    found = assess(now)
    one, other = (np.concatenate([group["features"] for group in groups]) for groups in (now, first))
    assert found["frechet"] == pytest.approx(frechet.distance(frechet.normal(one), frechet.normal(other)))
    assert {name: found[name] for name in ("precision", "recall", "density", "coverage")} == pytest.approx(
        neighbours.compare(one, other, 3)
    )
    assert found["vendi"] == pytest.approx(np.mean([diversity.vendi(group["features"]) for group in now]))
    assert found["pairwise"] == pytest.approx(np.mean([diversity.pairwise(group["features"]) for group in now]))
    assert set(found) == set(quality.NAMES) - {"lpips"}


def test_groups_without_features_do_not_count_and_none_gives_no_figure(tmp_path):
    assess = quality.Assessor(config.Quality(features=config.ClipFeatures()), tmp_path, CPU)
    assert assess([measured(0), {}]) == assess([measured(0)])
    assert assess([{}, {}]) == {}


def test_images_of_another_size_than_the_references_are_refused(tmp_path):
    settings = config.Quality(features=config.ClipFeatures(), reference=config.ShapesReference(count=6), neighbours=2)
    with pytest.raises(QualityError, match=r"images of 32 x 64, .* has 64 x 64"):
        quality.Assessor(settings, tmp_path, CPU)([measured(0, size=(32, 64))])


def test_what_is_wrong_with_a_reference_is_said_before_a_run_starts(small_sd, tmp_path):
    Image.fromarray(images()[0]).resize((8, 8)).save(tmp_path / "one.png")
    for n in range(3):
        Image.fromarray(images()[0]).save(tmp_path / f"{n}.png")
    wanted = f"{{features: {{kind: clip}}, neighbours: 2, reference: {{kind: images, path: '{tmp_path}'}}}}"
    with pytest.raises(QualityError, match=r"1 of 4 .*one\.png \(8 x 8\); the run's own are 16 x 16"):
        session.check(small.run(small_sd, evaluation__quality=wanted))


def test_a_reference_image_cut_short_is_named_before_anything_is_sampled(small_sd, tmp_path):
    for n in range(3):
        Image.fromarray(images(n)[0]).save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:-300])
    wanted = f"{{features: {{kind: clip}}, neighbours: 2, reference: {{kind: images, path: '{tmp_path}'}}}}"
    run = small.run(small_sd, evaluation__quality=wanted)
    session.check(run)
    with pytest.raises(QualityError, match=r"2\.png cannot be read as a whole image"):
        quality.assessor(run, tmp_path / "run", print)


def test_settings_that_cannot_be_measured_are_refused():
    for changes, words in [
        ({"evaluation__images": 1, "evaluation__quality": CLIP}, "evaluation.images is 1"),
        ({"evaluation__quality": "{features: {kind: clip}, reference: {kind: base}}"}, "neighbours is 5, of 2 x 2"),
        (
            {
                "evaluation__count": 9,
                "evaluation__quality": "{features: {kind: clip}, reference: {kind: shapes, count: 4}}",
            },
            "expected more than the 5",
        ),
    ]:
        with pytest.raises(ConfigError, match=words):
            small.run("model", **changes)


@pytest.fixture(scope="module")
def measured_run(small_sd, tmp_path_factory):
    run = small.run(small_sd, evaluation__count=3, evaluation__quality=BASE, evaluation__train_count=2)
    folder = tmp_path_factory.mktemp("runs") / "small"
    recorder = Recorder.create(LocalFolder(local=folder), run)
    prompts, held_out = session.sources(run)
    stages = session.stages(run, local=True, say=print)
    Loop(run, stages, recorder, prompts=prompts, held_out=held_out).train()
    return recorder


def test_a_run_records_quality_by_stable_names_and_keeps_its_features(measured_run):
    first, last = (row for row in measured_run.metrics() if row["kind"] == "evaluation")
    assert set(first["quality"]) == set(last["quality"]) == set(quality.NAMES) - {"lpips"}
    assert first["quality"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert last["quality"]["frechet"] > 1e-7
    assert (first["quality"]["precision"], first["quality"]["recall"]) == (1, 1)
    assert np.load(measured_run.folder / "features" / "step-000002.npy").shape == (6, 128)


def test_training_prompts_are_evaluated_apart_where_asked(measured_run):
    for row in measured_run.metrics():
        if row["kind"] == "evaluation":
            assert row["train_rewards"].keys() == row["rewards"].keys()
            assert row["train_rewards"]["reward"]["mean"] != row["rewards"]["reward"]["mean"]
            assert row["images"] == (3 + 2) * 2
    held_out = records.evaluations(measured_run.folder, 2)["reward"]
    assert held_out.shape == (3, 2)
    assert held_out.mean() == pytest.approx(row["rewards"]["reward"]["mean"])


def test_a_change_over_3_prompts_is_recorded_without_an_interval(measured_run):
    first, last = (row for row in measured_run.metrics() if row["kind"] == "evaluation")
    assert "changes" not in first
    for name, change in last["changes"].items():
        assert change["mean"] == pytest.approx(last["rewards"][name]["mean"] - first["rewards"][name]["mean"])
        assert np.isnan(change["low"]) and np.isnan(change["high"])


def test_the_command_prints_what_the_run_recorded_last(measured_run, command):
    status, out, _ = command("evaluate", measured_run.folder, "--local")
    assert status == 0
    last = measured_run.metrics()[-1]
    for name, value in last["quality"].items():
        assert f"  {name}: {value:.4f}" in re.sub(" {2,}(?=[-0-9])", " ", out)
    assert "2 training prompts:" in out and f"{last['train_rewards']['reward']['mean']:.4f}" in out


def test_a_rewound_run_drops_features_that_are_about_to_come_again(measured_run, tmp_path):
    recorder = Recorder(LocalFolder(local=tmp_path), measured_run.run)
    for step in (0, 2, 4):
        quality.reference.save(tmp_path / "features" / f"step-{step:06d}.npy", np.ones((2, 2)))
    recorder.rewind(2)
    assert [path.name for path in sorted((tmp_path / "features").iterdir())] == ["step-000000.npy", "step-000002.npy"]


def test_images_that_are_never_measured_end_a_run_with_the_cause(small_sd, tmp_path):
    run = small.run(small_sd, evaluation__count=9, evaluation__quality=CLIP)
    stages = LocalStages(run)

    def broken(images):
        raise RuntimeError("out of memory")

    stages.scorers.scorer.measures.extract = broken
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), run)
    prompts, held_out = session.sources(run)
    with pytest.raises(RewardError, match="out of memory"):
        Loop(run, stages, recorder, prompts=prompts, held_out=held_out).train()


def test_an_evaluation_of_both_kinds_of_prompts_asks_for_different_groups(small_sd):

    run = small.run(small_sd, prompts="{kind: shapes, split: held_out}", evaluation__train_count=2)
    prompts, held_out = session.sources(run)
    tasks = [*evaluation_tasks(run, held_out, 0), *watched_training_tasks(run, prompts, 0)]
    assert [len(task.prompts) for task in tasks] == [2, 2] and len(set(tasks)) == 2
