"""A config is read whole, or refused with the path, the value and what was expected."""

import copy
import dataclasses
import re

import pytest
import yaml

from pcpo_ray import config
from pcpo_ray.config import Lora, files, mistakes
from pcpo_ray.config.model import ATTENTION
from pcpo_ray.errors import ConfigError, RunError
from pcpo_ray.runs import configs
from tests.support import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SHAPES = CONFIGS[0].with_name("shapes_pcpo.yaml")

WRONG = {
    "sampling.stpes=3": ["sampling.stpes", "'steps'"],
    "optimizer.learnig_rate=1": ["optimizer.learnig_rate", "'learning_rate'"],
    "model.train.targets=[]": ["model.train.targets", "list of texts, at least 1"],
    "model.train.rnk=3": ["model.train.rnk", "'rank'"],
    "rewards.0.modle=x": ["rewards.0.modle", "'model'"],
    "steps=many": ["steps", "'many'", "integer"],
    "steps=null": ["steps: got null; expected an integer >= 1"],
    "optimizer.learning_rate=-1": ["optimizer.learning_rate", "-1", "number > 0"],
    "optimizer.learning_rate=.inf": ["optimizer.learning_rate", "inf", "finite"],
    "rewards.0.weight=.nan": ["rewards.0.weight", "nan", "finite"],
    "rollout.prompts=0": ["rollout.prompts", "0", "integer >= 1"],
    "rollout.max_staleness=-1": ["rollout.max_staleness", "-1"],
    "rewards=[{kind: clip_scor}]": ["rewards.0.kind", "'clip_scor'", "'clip_score'"],
    "rewards=[]": ["rewards is empty"],
    "rewards=[{kind: diversity}, {kind: diversity}]": ["twice"],
    "credit.kind=proportionat": ["credit.kind", "'proportionat'", "'proportionate'"],
    "credit.kind=proportionate": ["credit.kind", "stable_diffusion", "reweight"],
    "sampling.process={kind: ratio_noise}": ["sampling.process.kind", "ddim"],
    "sampling.process={kind: proportionate_noise}": ["sampling.process.kind", "ddim"],
    "sampling.process={kind: proportionate_noise, zeta: 0}": ["zeta", "number > 0 or null"],
    "sampling.process={kind: coefficients_preserving, eta: 1.5}": ["eta", "1.5", "<= 1"],
    "credit={kind: tilted}": ["slope", "missing"],
    "credit={kind: tilted, slope: 1}": ["credit.slope", "< 1"],
    "rollout.images=1": ["rollout.images is 1", "advantage.kind=batch"],
    "optimizer.minibatches=9": ["optimizer.minibatches is 9", "rollout.prompts"],
    "model={kind: stable_diffusion, path: shapes-sd, dtype: float16}": [
        "mixed_precision is bf16",
        "float32 or bfloat16",
    ],
    "workers.learner={ranks: 2, strategy: fsdp2}": ["optimizer.micro_batch is auto", "give a number"],
    "optimizer.micro_batch=all": ["optimizer.micro_batch: got 'all'", "an integer >= 1 or auto or null"],
    "optimizer.micro_batch=0": ["1 wrong", "optimizer.micro_batch: got 0; expected an integer >= 1 or auto or null"],
    "objective.log_ratio=replay": ["objective.log_ratio is replay", "credit.kind=reweight", "credit.kind=native"],
    "objective={kind: log_hinge, old_predictions: resampled}": ["objective.old_predictions", "'resampled'"],
    "sampling.compile=true": ["sampling.compile is true with objective.old_predictions=sampled", "recomputed"],
    "optimizer.compile=true": ["optimizer.compile is true with objective.old_predictions=sampled", "recomputed"],
    "sampling.batch=auto": ["sampling.batch is auto with objective.old_predictions=sampled", "recomputed"],
    "objective.max_mismatch=0.01": ["objective.max_mismatch is 0.01", "ends the run at its first update"],
    "model.attention=sage": ["model.attention: got 'sage'", "_native_math"],
    "evaluation={held_out: false, train_count: 4}": ["evaluation.train_count is 4", "leave one of the two out"],
    "evaluation.sampling={steps: 0}": ["evaluation.sampling.steps", "integer >= 1"],
    "evaluation.sampling={eta: 0}": ["evaluation.sampling.eta"],
    "sampling.trained_steps=21": ["sampling.trained_steps is 21", "of 8 steps"],
    "sampling.detach_unconditional=true": ["detach_unconditional is true with guidance_scale 1", "leave it out"],
    "sampling.subset={kind: window, size: 2, order: random, every: 5}": ["every 5 with order random", "leave them out"],
    "advantage={kind: prompt_history, buffer: 8}": ["advantage", "minimum is 16 of a buffer of 8"],
    "rewards=[{kind: grain, weight: 0}, {kind: shapes_layout, weight: 0}]": ["rewards all have the weight 0"],
    "workers.samplers={workers: 4, min: 2}": ["workers.samplers", "min is 2 without max"],
    "workers.learner.offload=true": [
        "workers.learner",
        "offload is true with strategy=ddp and ranks=1",
        "strategy=fsdp2",
    ],
    "workers.samplers.workers=0": ["workers", "samplers.workers is 0, so nobody makes images", "learner.samples=true"],
    "workers.scorers.workers=0": ["workers", "scorers.workers is 0; expected at least 1"],
    "name=../elsewhere": ["name", "'../elsewhere'"],
    "trackers=[tensorbord]": ["trackers.0", "'tensorbord'"],
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(path, tmp_path):
    run = files.load(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(files.dump(run))
    assert files.load(copy) == run


@pytest.mark.parametrize(
    "override",
    [
        "sampling.process={kind: coefficients_preserving, eta: 0.3}",
        "sampling.process={kind: proportionate_noise}",
        "sampling.process={kind: proportionate_noise, zeta: 20}",
        "credit={kind: tilted, slope: -0.5}",
        "rewards=[{kind: shapes_layout}, {kind: grain, weight: -1}]",
    ],
)
def test_a_key_that_no_shipped_config_sets_survives_a_round_trip(override, tmp_path):
    run = files.load(SHAPES.with_stem("shapes_pcpo_flux"), [override])
    path, _, value = override.partition("=")
    said = yaml.safe_load(files.dump(run))
    for key in path.split("."):
        said = said[key]
    asked = yaml.safe_load(value)
    for one, other in zip(said, asked, strict=True) if isinstance(asked, list) else [(said, asked)]:
        assert one.items() >= other.items()
    (tmp_path / "config.yaml").write_text(files.dump(run))
    assert files.load(tmp_path / "config.yaml") == run


@pytest.mark.parametrize(
    ("baseline", "method"),
    [
        ("shapes_ddpo", "shapes_pcpo"),
        ("shapes_dancegrpo_flux", "shapes_pcpo_flux"),
        ("words_ddpo", "words_pcpo"),
        ("words_dancegrpo", "words_pcpo_flux"),
    ],
)
def test_the_files_of_a_pair_differ_by_the_contribution_alone(baseline, method):
    one, other = (dataclasses.asdict(files.load(SHAPES.with_stem(name))) for name in (baseline, method))
    assert {key for key in one if one[key] != other[key]} == {"name", "objective", "credit"}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_named_with_its_path_and_what_was_expected(override):
    others = ["optimizer.mixed_precision=bf16", "optimizer.micro_batch=auto"]
    if override.startswith("optimizer.micro_batch"):
        others = []
    with pytest.raises(ConfigError) as caught:
        files.load(SHAPES, [*others, override])
    assert all(word in str(caught.value) for word in WRONG[override]), caught.value


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError, match="2 wrong"):
        files.load(SHAPES, ["sampling.stpes=3", "optimizer.learning_rate=x"])


@pytest.mark.parametrize("old", ["optimizer.updates=2", "optimizer={updates: 2}"])
def test_a_key_that_was_renamed_is_refused_with_its_new_name(old):
    with pytest.raises(ConfigError, match=r"optimizer\.updates: .*it is now optimizer\.minibatches, so rename it"):
        files.load(SHAPES, [old])


def test_a_stored_run_with_a_renamed_key_says_what_to_rename(tmp_path):
    text = files.dump(files.load(SHAPES)).replace("minibatches: 2", "updates: 2")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml is not a config of this version: [\s\S]*optimizer\.minibatches"):
        configs.read(tmp_path)
    (tmp_path / "config.yaml").write_text(text.replace("updates: 2", "minibatches: 2"))
    assert configs.read(tmp_path) == files.load(SHAPES)


def test_every_renamed_key_has_a_new_name_that_exists():
    for old, new in mistakes.RENAMED.items():
        section, _, key = new.partition(".")
        assert hasattr(getattr(files.load(SHAPES), section), key)
        assert not hasattr(getattr(files.load(SHAPES), section), old.rpartition(".")[2])


def test_a_watched_reward_with_a_trained_ones_name_has_its_settings():
    with pytest.raises(ConfigError, match=r"evaluation\.rewards has another clip_score than rewards"):
        files.load(SHAPES, ["evaluation.rewards=[{kind: clip_score, model: other}]"])
    same = "evaluation.rewards=[{kind: clip_score, weight: 2}, {kind: diversity, weight: 3}]"
    assert len(files.load(SHAPES, [same]).evaluation.rewards) == 2


@pytest.mark.parametrize("credit", ["released", "variance", "interpolate"])
def test_credit_that_changes_the_sampler_allows_no_other_noisy_evaluation(credit):
    own = [f"credit={{kind: {credit}}}", "evaluation.sampling={steps: 4}"]
    with pytest.raises(ConfigError, match=rf"credit\.kind={credit}.*evaluation\.sampling\.deterministic=true"):
        files.load(SHAPES, own)
    assert files.load(SHAPES, [own[0], "evaluation.sampling={steps: 4, deterministic: true}"])


def test_interpolation_without_an_adapter_is_refused():
    with pytest.raises(ConfigError, match=r"model\.train\.kind=lora"):
        files.load(SHAPES, ["credit.kind=interpolate", "model.train={kind: full}"])


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert files.load(SHAPES, ["optimizer.learning_rate=1e-5"]).optimizer.learning_rate == 1e-5


@pytest.mark.parametrize("text", ["a: [", "just words", ""])
def test_a_file_that_is_no_config_is_a_named_error(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        files.load(path)


def test_a_file_that_is_missing_or_badly_encoded_is_a_named_error(tmp_path):
    with pytest.raises(ConfigError, match="no config file"):
        files.load(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        files.load(tmp_path / "latin.yaml")


@pytest.mark.parametrize("override", ["steps", "=3", "rewards.7.kind=x", "steps.deep.er=1", "name=[unclosed"])
def test_an_override_that_reaches_nothing_is_refused(override):
    with pytest.raises(ConfigError, match="override"):
        files.load(SHAPES, [override])


def test_a_key_left_out_without_a_default_is_named():
    data = yaml.safe_load(SHAPES.read_text())
    del data["model"]["path"]
    with pytest.raises(ConfigError, match=r"model\.path: missing"):
        files.parse(data)


@pytest.mark.parametrize("key", ["steps", "optimizer.beta1", "rewards.0.weight", "evaluation.rewards.2.quality"])
def test_a_truth_value_is_no_number(key):
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: got True; expected a number"):
        files.load(SHAPES, [f"{key}=yes"])


def places(node, path=()):
    """Every key and index in plain data, by its path."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize(
    "value", [None, True, -1, 10**30, "x", "", [], [None], {}, {"kind": []}, {1: 2}, {"kind": "a:b"}]
)
def test_whatever_stands_anywhere_is_read_or_refused_by_its_path(value):
    data = yaml.safe_load(SHAPES.read_text())
    for path in places(data):
        changed = copy.deepcopy(data)
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        try:
            run = files.parse(changed)
        except ConfigError as error:
            assert ".".join(map(str, path)).removesuffix(".kind") in str(error)
        else:
            assert files.parse(yaml.safe_load(files.dump(run))) == run


def test_diversity_of_a_single_image_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.images is 1, and diversity compares"):
        files.load(SHAPES, ["evaluation.images=1"])


@pytest.mark.parametrize("name", [*config.OUR_NAMES, "clip_score", "diversity", "jpeg_compressibility"])
@pytest.mark.parametrize("key", ["rewards", "evaluation.rewards"])
def test_a_reward_of_the_users_own_named_as_something_of_ours_is_refused(name, key):
    for reward in (
        f"{{kind: 'mine:{name}'}}",
        f"{{kind: 'mine:Good', label: {name}}}",
        f"{{kind: remote, url: 'http://127.0.0.1:1', label: {name}}}",
    ):
        with pytest.raises(ConfigError, match=rf"named '{name}', as something else is .*give it another `label`"):
            files.load(SHAPES, [f"{key}=[{reward}]"])


def test_two_rewards_of_one_class_name_are_told_apart_by_their_labels():
    two = ["{kind: 'mine:Judge', options: {about: hands}", "{kind: 'yours:Judge'"]
    with pytest.raises(ConfigError, match=r"the same reward twice: \['Judge', 'Judge'\]; .*give each a `label`"):
        files.load(SHAPES, [f"rewards=[{two[0]}}}, {two[1]}}}]"])
    with pytest.raises(ConfigError, match=r"another Judge than rewards.*`label`"):
        files.load(SHAPES, [f"rewards=[{two[0]}}}]", f"evaluation.rewards=[{two[1]}}}]"])
    run = files.load(SHAPES, [f"rewards=[{two[0]}, label: hands}}, {two[1]}}}]"])
    assert [reward.name for reward in run.rewards] == ["hands", "Judge"]


@pytest.mark.parametrize("label", ["''", "' '", "'two  spaces'", "' led'", '"a\\nb"', '"a\\0b"', '"a\\u200bb"'])
def test_a_label_is_words_with_one_space_between(label):
    with pytest.raises(ConfigError, match="label"):
        files.load(SHAPES, [f"rewards=[{{kind: 'mine:Judge', label: {label}}}]"])


def test_infinities_in_the_options_of_a_custom_reward_survive_a_round_trip(tmp_path):
    run = files.load(SHAPES, ["rewards=[{kind: 'mine:Other', options: {limit: .inf, range: [-.inf, 1]}}]"])
    (tmp_path / "config.yaml").write_text(files.dump(run))
    assert files.load(tmp_path / "config.yaml") == run


TWICE = {
    "name: a\nsteps: 3\nname: b\n": "name is given twice, in lines 1 and 3",
    "name: a\nsampling:\n  steps: 3\n  shift: 1\n  steps: 3\n": "sampling.steps is given twice, in lines 3 and 5",
    "a:\n- {kind: grain}\n- {kind: grain, weight: 1,\n   weight: 2}": "a.1.weight is given twice, in lines 3 and 4",
    "rollout: {prompts: 1, images: 2, prompts: 3}": "rollout.prompts is given twice, in line 1",
    "'name': a\n\"name\": b\n": "name is given twice",
    "a: &x {b: {c: 1, c: 2}}\nd: *x\n": "a.b.c is given twice",
    "1: a\n0x1: b\n": "1 is given twice",
    "x: &x {a: 1}\ny: &y {b: 2}\nz:\n  <<: *x\n  <<: *y\n": "z.<< is given twice, in lines 4 and 5",
    "x: &x {a: 1, a: 2}\nz: {<<: *x}\n": "x.a is given twice",
    "z: {<<: {a: 1, a: 2}}\n": "z.a is given twice",
}


@pytest.mark.parametrize("text", TWICE)
def test_a_key_given_twice_is_refused_with_its_path_and_lines(tmp_path, text):
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"twice\.yaml: {TWICE[text]}"):
        files.read(tmp_path / "twice.yaml")


def test_what_is_merged_in_may_be_named_again_and_an_alias_used_twice(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\nboth: {<<: [{b: 4}, *one], c: 5}\nthree: *one\n")
    found = files.read(path)
    assert found["two"] == {"a": 1, "b": 3} and found["both"] == {"a": 1, "b": 4, "c": 5}
    assert found["three"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "text", ["date: 2024-13-45", "a: " + 2000 * "[", "a: !!python/name:os.system", "a: 1\n---\na: 2"]
)
def test_a_text_that_yaml_cannot_read_is_a_named_error(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.yaml is not YAML"):
        files.read(tmp_path / "odd.yaml")


def test_a_key_given_twice_inside_an_override_is_refused():
    with pytest.raises(ConfigError, match=r"rollout\.prompts is given twice, in line 1"):
        files.load(SHAPES, ["rollout={prompts: 2, images: 4, prompts: 3}"])


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ("steps=3", "steps=4", "steps"),
        ("steps=3", "steps=3", "steps"),
        ("optimizer.learning_rate=1e-3", "optimizer={minibatches: 2}", "optimizer.learning_rate"),
        ("model.train={kind: lora, rank: 8}", "model.train.rank=4", "model.train.rank"),
        ("rewards=[{kind: grain, weight: 2}]", "rewards.0.weight=3", "rewards.0.weight"),
        ("credit=null", "credit={kind: native}", "credit"),
    ],
)
def test_two_overrides_that_set_the_same_are_refused_with_both(one, other, key):
    with pytest.raises(ConfigError) as caught:
        files.load(SHAPES, [one, "seed=1", other])
    assert str(caught.value) == f"{one} and {other} both set {key}; leave one of them out"


def test_an_override_may_add_to_what_one_before_it_has_set():
    run = files.load(SHAPES, ["model.train={kind: lora}", "model.train.rank=3", "steps=5"])
    assert run.model.train == Lora(rank=3, targets=ATTENTION) and run.steps == 5
