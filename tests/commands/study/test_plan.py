"""A study's file is read whole or refused; arms that are compared are equal where they must be."""

import dataclasses
import statistics

import pytest

from pcpo_ray import config, models
from pcpo_ray.commands.study import axes, plan
from pcpo_ray.config import files
from pcpo_ray.errors import ConfigError, StudyError
from pcpo_ray.models import steps
from tests.support import ROOT, stored

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def arms(**second):
    return {"ddpo": {}, "pcpo": second}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_loads_and_its_arms_can_start_and_be_compared(path):
    study = plan.load(path)
    plan.check(study)
    assert len(study.seeds) >= 5
    names = [one.run.name for one in (*plan.search_runs(study), *plan.main_runs(study, {}))]
    assert len(set(names)) == len(names) and all(name.startswith(f"{study.name}-") for name in names)


def test_shipped_studies_have_names_of_their_own():
    names = [plan.load(path).name for path in STUDIES]
    assert STUDIES and len(set(names)) == len(names)


def test_the_studies_of_both_rewards_have_the_same_arms_and_settings():
    one, other = (plan.load(next(p for p in STUDIES if p.stem == stem)) for stem in ("diffusion", "diffusion_jpeg"))
    credits = [{name: arm.set.get("credit") for name, arm in study.arms.items()} for study in (one, other)]
    assert credits[0] == credits[1]
    keys = {key for key in {*one.set, *other.set} if one.set.get(key) != other.set.get(key)}
    assert keys == {"rewards", "evaluation.rewards", "steps", "evaluation.every", "checkpoints"}


@pytest.mark.parametrize(
    ("stem", "recipes"),
    [
        ("words", {"ddpo": "words_ddpo", "pcpo": "words_pcpo"}),
        ("words_aa", {"one": "words_pcpo", "the-same": "words_pcpo"}),
        ("words_flow", {"dancegrpo": "words_dancegrpo", "pcpo": "words_pcpo_flux"}),
        ("words_flow_aa", {"one": "words_pcpo_flux", "the-same": "words_pcpo_flux"}),
    ],
)
def test_the_arms_of_studies_on_words_are_its_recipes(stem, recipes):
    study = plan.load(ROOT / "configs" / "studies" / f"{stem}.yaml")
    assert set(study.arms) == set(recipes)
    for arm, recipe in recipes.items():
        differing = files.differing(*map(files.plain, (plan.planned(study, arm, 1).run, files.load(recipe))))
        assert set(differing) <= {"name", "seed", "optimizer.micro_batch", "checkpoints.every", "checkpoints.keep"}


def test_a_base_is_found_from_the_studys_file(tmp_path):
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "study.yaml"
    with pytest.raises(ConfigError, match=r"no config file at .*absent\.yaml"):
        path.write_text("{name: x, base: ../absent.yaml, arms: {a: {}, b: {}}, seeds: [1, 2], targets: {values: [1]}}")
        plan.load(path)


def test_an_arm_is_the_base_the_studys_keys_its_own_and_a_seed():
    study = stored.study(set={"optimizer.learning_rate": 1e-3, "steps": 8})
    run = plan.planned(study, "pcpo", 3).run
    assert (run.name, run.seed, run.steps, run.optimizer.learning_rate) == ("small-pcpo-seed3", 3, 8, 1e-3)
    assert (run.credit.kind, run.objective.kind) == ("reweight", "log_hinge")
    shifted = stored.study(arms=arms(seed_offset=1000))
    assert plan.planned(shifted, "pcpo", 3).run.seed == 1003


def test_the_search_has_the_same_rates_for_every_arm_on_seeds_of_its_own():
    study = stored.study(search={"rates": [1e-3, 2e-3], "seeds": [7, 8]})
    runs = plan.search_runs(study)
    assert len({one.run.name for one in runs}) == len(runs) == 2 * 2 * 2
    for arm in study.arms:
        found = [(one.rate, one.run.optimizer.learning_rate, one.seed) for one in runs if one.arm == arm]
        assert found == [(1e-3, 1e-3, 7), (1e-3, 1e-3, 8), (2e-3, 2e-3, 7), (2e-3, 2e-3, 8)]
    kept = plan.main_runs(study, {"ddpo": 1e-3, "pcpo": 2e-3})
    assert {(one.arm, one.run.optimizer.learning_rate) for one in kept} == {("ddpo", 1e-3), ("pcpo", 2e-3)}


WRONG = [
    ({"seeds": [1]}, ["seeds", "at least 2"]),
    ({"seeds": list(range(17))}, ["seeds", "at most 16"]),
    ({"seeds": [1, 1]}, ["seeds names a seed twice"]),
    ({"arms": {"ddpo": {}}}, ["arms", "at least 2"]),
    ({"arms": arms(sets={})}, ["arms.pcpo.sets", "did you mean 'set'?"]),
    ({"arms": arms(against="pcpo")}, ["arms.pcpo.against", "an arm above it"]),
    ({"arms": {"ddpo": {"varies": ["steps"]}, "pcpo": {}}}, ["arms.ddpo is the first"]),
    ({"arms": {"../x": {}, "pcpo": {}}}, ["'../x'", "one folder name"]),
    ({"name": "a/b"}, ["name", "'a/b'"]),
    ({"set": {"seed": 5}}, ["set sets ['seed']", "a study gives each run itself"]),
    ({"arms": arms(set={"name": "mine"})}, ["arms.pcpo.set sets ['name']"]),
    (
        {"set": {"optimizer.learning_rate": 1e-3, "optimizer": {"minibatches": 2}}},
        ["set: optimizer.learning_rate=0.001 and optimizer={minibatches: 2} both set optimizer.learning_rate"],
    ),
    ({"search": {"rates": [1e-3, 2e-3], "seeds": [1]}}, ["search.seeds", "[1]"]),
    ({"search": {"rates": [1e-3], "seeds": [9]}}, ["search.rates", "at least 2"]),
    (
        {"search": {"rates": [1e-3, 2e-3], "seeds": [9]}, "set": {"optimizer.learning_rate": 1e-3}},
        ["optimizer.learning_rate", "searched for"],
    ),
    ({"targets": {"values": []}}, ["targets.values", "at least 1"]),
    ({"target": {"values": [1]}}, ["target", "did you mean 'targets'?"]),
]


@pytest.mark.parametrize("changes, words", WRONG, ids=[" ".join(words) for _, words in WRONG])
def test_a_wrong_study_is_refused_with_the_path_and_what_was_expected(changes, words):
    with pytest.raises(ConfigError) as raised:
        stored.study(**changes)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_wrong_key_of_an_arm_names_the_arm():
    with pytest.raises(ConfigError, match=r"study small, arm pcpo(.|\n)*did you mean 'clip_range'"):
        plan.check(stored.study(arms=arms(set={"objective.clip_rnage": 1})))


UNEQUAL: dict[str, object] = {
    "model.gradient_checkpointing": True,
    "model.text_cache": "texts",
    "prompts.split": "held_out",
    "sampling.guidance_scale": 2.0,
    "sampling.process.eta": 0.5,
    "sampling.shared_noise": True,
    "sampling.batch": 1,
    "sampling.storage": "bfloat16",
    "rewards": [{"kind": "jpeg_compressibility"}],
    "combine": "advantages",
    "credit": {"kind": "interpolate", "w_star": 0.1},
    "advantage": {"kind": "batch"},
    "advantage.scale": "batch",
    "objective.kind": "log_hinge",
    "objective.kl": 0.1,
    "objective.correction": 2.0,
    "objective.clip_range": 1e-3,
    "objective.clip_scale": "weight",
    "objective.step_loss": "noise",
    "objective.log_ratio": "replay",
    "rollout.images": 6,
    "rollout.max_staleness": 1,
    "optimizer.learning_rate": 1e-2,
    "optimizer.weight_decay": 0.1,
    "optimizer.average": 0.99,
    "optimizer.max_gradient_norm": 0.5,
    "optimizer.minibatches": 2,
    "optimizer.mixed_precision": "bf16",
    "steps": 5,
    "evaluation.count": 2,
    "monitors.action": "stop",
    "workers.samplers.workers": 2,
}


def declared(key):
    return [key, "mean credit weight"] if key in ("credit", "sampling.process.eta") else [key]


@pytest.mark.parametrize("key, value", UNEQUAL.items(), ids=str)
def test_every_key_in_which_arms_differ_is_seen(key, value):
    study = stored.study(arms=arms(set={key: value}))
    one, other = (plan.planned(study, arm, 1).run for arm in study.arms)
    assert [*axes.differing(other, one)] == declared(key)


@pytest.mark.parametrize("key", ["optimizer.average", "credit", "rewards"])
def test_arms_that_differ_are_refused_until_all_of_it_is_declared(key):
    keys = {key: UNEQUAL[key]}
    for missing in declared(key):
        some = [one for one in declared(key) if one != missing]
        with pytest.raises(StudyError, match=rf"arm pcpo cannot be compared with ddpo:\n  {missing}: pcpo has"):
            plan.check(stored.study(arms=arms(set=keys, varies=some)))
    plan.check(stored.study(arms=arms(set=keys, varies=declared(key))))
    plan.check(stored.study(arms=arms(set=keys, varies=[one.partition(".")[0] for one in declared(key)])))


def test_no_key_of_the_config_is_left_out_of_the_comparison():
    one = plan.planned(stored.study(), "ddpo", 1).run
    keys = {field.name for field in dataclasses.fields(one)}
    assert {key.partition(".")[0] for key in UNEQUAL} | {"name", "seed", "checkpoints", "trackers", "notify"} == keys
    assert axes.differing(one, dataclasses.replace(one, checkpoints=config.Checkpoints(every=1))).keys() == {
        "checkpoints.every"
    }


@pytest.mark.parametrize(
    "keys, names",
    [
        ({"sampling.trained_steps": 2}, ["sampling.trained_steps", "trained steps", "mean credit weight"]),
        ({"sampling.subset": {"kind": "window", "size": 2}}, ["sampling.subset", "trained steps"]),
        ({"sampling.steps": 4}, ["sampling.steps", "trained steps", "mean credit weight"]),
    ],
    ids=str,
)
def test_what_follows_from_several_keys_is_declared_too(keys, names):
    study = stored.study(arms=arms(set=keys))
    one, other = (plan.planned(study, arm, 1).run for arm in study.arms)
    assert [*axes.differing(other, one)] == names


def test_what_does_not_vary_is_not_to_be_listed():
    for declared in ("steps", "trained steps", "objective"):
        with pytest.raises(StudyError, match=f"  {declared}: under `varies`, but the same in both; leave it out there"):
            plan.check(stored.study(arms=arms(varies=[declared])))
    with pytest.raises(StudyError, match=r"  objective\.kil: under `varies`, but no key .* mean 'objective\.kl'\?"):
        plan.check(stored.study(arms=arms(varies=["objective.kil"])))


def test_rates_that_are_searched_for_are_each_arms_own_and_not_declared():
    study = stored.study(search={"rates": [1e-3, 2e-3], "seeds": [9]})
    plan.check(study)
    rates = {one.arm: one.run.optimizer.learning_rate for one in plan.main_runs(study, {"ddpo": 1e-3, "pcpo": 2e-3})}
    assert rates == {"ddpo": 1e-3, "pcpo": 2e-3}


def test_samplers_are_told_apart_by_what_they_draw_and_not_by_names():
    base = plan.planned(stored.study(), "ddpo", 1).run

    def alike(**changes):
        return axes.same(axes.drawn(base), axes.drawn(dataclasses.replace(base, **changes)))

    assert alike(credit=config.Reweight()) and alike(objective=config.LogHinge()) and alike(seed=9)
    assert not alike(credit=config.Interpolate()) and not alike(credit=config.Released(w_star=30.0))
    sampling = config.EvaluationSampling(deterministic=True)
    mixed, plain = (
        dataclasses.replace(base, credit=credit, evaluation=dataclasses.replace(base.evaluation, sampling=sampling))
        for credit in (config.Interpolate(), config.Native())
    )
    assert axes.drawn(mixed) == axes.drawn(plain) != axes.drawn(base)
    for keys in ({"process": config.Ddim(eta=0.5)}, {"steps": 4}, {"guidance_scale": 2.0}, {"shared_noise": True}):
        assert not alike(sampling=dataclasses.replace(base.sampling, **keys))


def test_an_arm_is_measured_by_the_one_it_is_compared_with():
    longer = {"steps": 8}
    study = stored.study(
        arms={"a": {}, "b": {"set": longer, "varies": ["steps"]}, "c": {"set": longer, "against": "b"}}
    )
    plan.check(study)
    assert plan.compared(study) == [("b", "a"), ("c", "b")]


def test_all_four_credits_of_a_schedule_have_the_same_mean_weight():
    kinds = ("native", "reweight", "variance", "interpolate")
    study = stored.study(
        arms={
            kind: {"set": {"credit": {"kind": kind}}, "varies": ["credit"] if kind != "native" else []}
            for kind in kinds
        }
    )
    plan.check(study)
    weights = {}
    for kind in kinds:
        run = plan.planned(study, kind, study.seeds[0]).run
        folder = models.folder_of(run.model)
        schedule = models.schedule_of(folder, run.model, run.sampling)
        weights[kind] = steps.plan(run.credit, run.sampling, schedule).weights
    assert statistics.pstdev(weights["native"]) > 0.1 * statistics.mean(weights["native"])
    for kind in kinds[1:]:
        assert statistics.mean(weights[kind]) == pytest.approx(statistics.mean(weights["native"]), rel=1e-6)
