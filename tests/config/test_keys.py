"""Every key has a sentence, a type and a default in words; keys that were nearly named are found."""

import dataclasses

import pytest
import yaml

from pcpo_ray import config
from pcpo_ray.config import files, keys
from pcpo_ray.config.keys import Key, Kind
from pcpo_ray.errors import ConfigError
from tests.support import ROOT

SHAPES = ROOT / "configs" / "shapes_pcpo.yaml"
EVERY = list(keys.every_key())


def test_every_key_has_a_sentence_that_ends():
    found = [one for one in EVERY if isinstance(one, Key)]
    assert len(found) > 150
    assert [key.path for key in found if not key.sentence.endswith(".")] == []
    assert [key.path for key in found if len(key.sentence.split()) > 28] == []


def test_every_field_of_every_class_is_among_the_keys_or_of_the_same_kinds():
    classes = [cls for cls in vars(config).values() if isinstance(cls, type) and dataclasses.is_dataclass(cls)]
    listed = {one.path.rpartition(".")[2] for one in EVERY if isinstance(one, Key)}
    parts = [cls for cls in classes if hasattr(cls, "__pydantic_config__")]
    assert len(parts) > 40
    assert {field.name for cls in parts for field in dataclasses.fields(cls)} - listed == set()


@pytest.mark.parametrize(
    ("path", "type_", "default", "unit"),
    [
        ("optimizer.warmup", "integer >= 0", "0", "steps"),
        ("optimizer.micro_batch", "integer >= 1 or `auto` or `null`", "null", ""),
        ("optimizer.kind", "`adamw` | `adamw8bit` | `package.module:name`", "adamw", ""),
        ("workers.learner.timeout", "number > 0", "300", "seconds"),
        ("sampling.height", "integer >= 1 or `null`", "null", "pixels"),
        ("model.path", "path or name", "required", ""),
        ("rewards", "list of mappings with `kind`", "required", ""),
        ("evaluation.prompts", "mapping with `kind` or `null`", "null", ""),
        ("workers.samplers.resources", "mapping", "{}", ""),
    ],
)
def test_a_key_is_described_as_its_class_declares_it(path, type_, default, unit):
    (key,) = [one for one in EVERY if isinstance(one, Key) and one.path == path]
    assert (key.type, key.default, key.unit) == (type_, default, unit)


def test_kinds_come_with_their_keys_and_the_users_own_last():
    credit = [one for one in EVERY if one.path.split(".")[0] == "credit"]
    kinds = [one.names[0] for one in credit if isinstance(one, Kind)]
    assert (kinds[0], kinds[-1]) == ("native", keys.OWN)
    assert {key.kind for key in credit if key.path == "credit.w_star"} == {"released", "variance", "interpolate"}
    found = {path: [key.kind for key in EVERY if key.path == path] for path in ("objective.kl", "objective.clip_range")}
    assert found == {"objective.kl": [""], "objective.clip_range": ["clipped_ratio, log_hinge, package.module:name"]}


MEANT = {
    "learning_rate=1e-3": ["learning_rate: unknown key (did you mean optimizer.learning_rate?)"],
    "optimizer.lr=1e-3": ["optimizer.lr: unknown key (did you mean 'learning_rate'?)"],
    "lr=1e-3": ["lr: unknown key (did you mean optimizer.learning_rate?)"],
    "minibatchs=2": ["did you mean optimizer.minibatches?"],
    "sampling.max_gradient_norm=2": ["did you mean optimizer.max_gradient_norm?"],
    "count=3": ["did you mean evaluation.count or evaluation.quality.reference.count?"],
    "weight=3": ["did you mean rewards.N.weight?"],
    "rewards=[{kind: ocr, name: mine}]": ["rewards.0.name: unknown key; expected one of"],
    "optimizer.steps=3": ["optimizer.steps: unknown key (did you mean steps"],
    "zzz=1": ["zzz: unknown key; expected one of"],
    "name=my/run": ["wrong\n  name is 'my/run'; expected one folder name, without slashes"],
    'name="a\\0b"': ["expected letters that can be printed"],
    f"name={'a' * 201}": ["and at most 200 bytes"],
    'name="two\\nlines"': ["name is 'two\\nlines'; expected letters that can be printed"],
    'name="\\ud83d"': ["name is '\\ud83d'; expected letters that can be printed"],
    "name=-x": ["name is '-x'; expected letters that can be printed, no leading dash, as of an option"],
    "rewards=Redness": ["rewards.0.kind: got 'Redness'", "package.module:name", "as in my_module:Redness"],
    "rewards=ocr_exact": ["rewards.0.kind: got 'ocr_exact' (did you mean {kind: ocr, score: exact, detect: false}"],
    "rewards=clip_scor": ["did you mean 'clip_score'?"],
    "credit=nativ": ["credit.kind: got 'nativ' (did you mean 'native'?)"],
    "rewards.weight=2": ["rewards is [kind clip_score], which has no keys; an item of a list has its number"],
    "name.kind=x": ["name is 'shapes-pcpo', which has no keys"],
    "steps.x=1": ["steps is 24, which has no keys"],
    "prompts=shape": ["prompts.kind: got 'shape' (did you mean 'shapes'?)"],
    "sampling.negative_prompt=blurry": ["negative_prompt is 'blurry' with guidance_scale 1"],
}


@pytest.mark.parametrize("override", MEANT)
def test_what_was_meant_is_said(override):
    with pytest.raises(ConfigError) as caught:
        files.load(SHAPES, [override])
    assert all(words in str(caught.value) for words in MEANT[override]), caught.value


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("prompts=prompts.txt", "prompts={kind: file, path: prompts.txt}"),
        ("prompts=data/mine", "prompts={kind: file, path: data/mine}"),
        ("prompts=mine:texts", "prompts={kind: 'mine:texts'}"),
        ("prompts=shapes", "prompts={kind: shapes}"),
        ("rewards=mine:Redness", "rewards=[{kind: 'mine:Redness'}]"),
        ("rewards={kind: grain, weight: 2}", "rewards=[{kind: grain, weight: 2}]"),
        ("rewards=[grain, mine:Redness]", "rewards=[{kind: grain}, {kind: 'mine:Redness'}]"),
        ("evaluation.rewards=grain", "evaluation.rewards=[{kind: grain}]"),
        ("credit=native", "credit={kind: native}"),
        ("advantage=mine:ranks", "advantage={kind: 'mine:ranks'}"),
    ],
)
def test_a_text_stands_for_the_mapping_that_it_names(short, whole):
    assert files.load(SHAPES, [short]) == files.load(SHAPES, [whole])


def test_exponents_are_numbers_in_options_too_and_quoted_ones_are_texts(tmp_path):
    reward = "rewards=[{kind: 'mine:Other', options: {rate: 1e-5, half: .5e3, name: '1e-5', word: 1e, hex: e5}}]"
    run = files.load(SHAPES, [reward])
    assert run.rewards[0].options == {"rate": 1e-5, "half": 500.0, "name": "1e-5", "word": "1e", "hex": "e5"}
    (tmp_path / "config.yaml").write_text(files.dump(run))
    assert files.load(tmp_path / "config.yaml") == run
    assert yaml.safe_load(files.dump(run))["rewards"][0]["options"]["rate"] == 1e-5


@pytest.mark.parametrize(
    ("text", "expected"),
    [("010", 10), ("-007", -7), ("1_000", 1000), ("0x1F", 31), ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("08.5", 8.5)],
)
def test_numbers_are_those_that_people_mean(text, expected):
    run = files.load(SHAPES, [f"rewards=[{{kind: 'mine:Other', options: {{value: {text}}}}}]"])
    assert run.rewards[0].options == {"value": expected}
    assert files.changed(run).rewards == run.rewards


def test_a_time_of_day_is_no_number():
    with pytest.raises(ConfigError, match=r"steps: got '1:30'; expected an integer >= 1"):
        files.load(SHAPES, ["steps=1:30"])
