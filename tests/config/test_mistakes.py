"""What is wrong with a config is said with what was meant."""

import re
from typing import get_args

import pytest

from pcpo_ray.config import Full, files, meant
from pcpo_ray.config.keys import Key, Kind, every_key
from pcpo_ray.config.model import ShippedKind
from pcpo_ray.config.training import ShippedOptimizer
from pcpo_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("model=sd15", "model.path=sd15"),
        ("sampling=ddim", "sampling.process.kind=ddim"),
        ("optimizer=adam", "optimizer.kind=adamw"),
        ("optimizer=1e-4", "optimizer.learning_rate=0.0001"),
        ("rollout=8", "rollout.prompts=8"),
        ("workers=4", "workers.samplers.workers=4"),
        ("workers.learner=2", "workers.learner.ranks=2"),
        ("monitors=stop", "monitors.action=stop"),
        ("model.train=lorra", "model.train.kind=lora"),
        ("evaluation=false", None),
        ("evaluation=[1]", None),
    ],
)
def test_a_value_for_a_section_is_told_which_of_its_keys_was_meant(override, meant):
    key = override.partition("=")[0]
    words = rf"{key}: got .*; expected (keys below it: |a mapping with a kind, )"
    with pytest.raises(ConfigError, match=words) as caught:
        files.load("shapes_pcpo", [override])
    assert (f"(did you mean {meant}?)" in str(caught.value)) if meant else ("did you mean" not in str(caught.value))


MEANT = {
    "sampling.sampler=ddim": "sampling.sampler: unknown key (did you mean sampling.process.kind=ddim?)",
    "credit=pcpo": "did you mean reweight (any model), interpolate (diffusion) or proportionate (flow)",
    "credit=ddpo": "did you mean native?",
    "rewards=[clip]": "rewards.0.kind: got 'clip' (did you mean clip_score?)",
    "evaluation.rewards=[hps]": "did you mean hps_v2.1?",
    "model.kind=sd15": "did you mean stable_diffusion?",
    "model.dtype=fp16": "did you mean float16?",
    "prompts=animal": "did you mean 'animals'?",
    "batch_size=8": "did you mean rollout.prompts?",
    "output_dir=x": "did you mean --runs?",
    "trackers=wandb": "a list of one is trackers=[wandb]",
    "name=5": "'name=\"5\"'",
    "evaluation.quality=false": "got false; expected keys below it: features, reference, neighbours, cache, lpips "
    "or null",
    "prompts=a photo of a cat": "prompts: got 'a photo of a cat'; write your prompts into a file, one a line",
    "prompts=[a cat, a dog]": "give that: prompts=prompts.txt",
    "size=512": "did you mean sampling.height or sampling.subset.size?",
    "opt.learning_rate=1": "opt: unknown key (did you mean 'optimizer'?)",
    "optimizer.kind=adamw8": "(did you mean 'adamw8bit'?); expected one of ['adamw', 'adamw8bit', "
    "'package.module:Class']",
    "trackers=wandbb": "a list of one is trackers=[wandb]",
    "rewards=aesthetic": "rewards.0.head: missing; it has no default. The predictor's .pth file.",
    "rewards=my_rewards": "name your own with its module, as in my_rewards:MyClass",
    "rewards=my_rewards.py": "name your own with its module, as in my_rewards:MyClass",
    "rewards={weight: 2}": "rewards.0.kind: missing; expected one of",
    "rewards={kind: remote, url: x}": "expected an address that begins with http:// or https://",
}


@pytest.mark.parametrize("override", MEANT)
def test_words_of_other_programs_are_told_what_they_are_here(override):
    with pytest.raises(ConfigError) as caught:
        files.load("shapes_pcpo", [override])
    assert MEANT[override] in str(caught.value) and "1 wrong" in str(caught.value)


@pytest.mark.parametrize("key", ["rewards", "credit", "advantage", "objective", "prompts", "optimizer.kind"])
def test_a_class_named_with_a_dot_is_told_with_a_colon(key):
    with pytest.raises(ConfigError, match=r"my_code\.inner\.Mine' \(did you mean my_code\.inner:Mine\?\)"):
        files.load("shapes_pcpo", [f"{key}=my_code.inner.Mine"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "model.train.kind=full",
            "model.train: kind full has no rank and no alpha, kind lora has; leave them out, or write the mapping "
            "whole: model.train={kind: full} or model.train={kind: lora, rank: 16, alpha: 16}",
        ),
        ("prompts.kind=file", "prompts: kind file has no split, kind shapes or words has; leave it out, or write the "
         "mapping whole: prompts={kind: file, path: ...}"),
        ("advantage.buffer=3", "advantage={kind: group} or advantage={kind: prompt_history, buffer: 3}"),
        ("rewards.0.kind=a:B", "rewards.0: a kind of your own has no model"),
    ],
)  # fmt: skip
def test_keys_of_another_kind_are_told_to_write_the_mapping_whole(override, said):
    with pytest.raises(ConfigError) as caught:
        files.load("shapes_pcpo", [override])
    assert said in str(caught.value) and "1 wrong" in str(caught.value)
    if "={kind: full}" in said:
        assert files.load("shapes_pcpo", ["model.train={kind: full}"]).model.train == Full()


def test_words_of_other_programs_mean_keys_and_kinds_that_there_are():
    every = list(every_key())
    keys = {key.path for key in every if isinstance(key, Key)}
    assert {key for key in meant.KEYS if not key.startswith("--")} <= keys
    kinds_at = {one.path for one in every if isinstance(one, Kind)}
    places = {
        path.replace(".N", ""): {
            name for one in every if isinstance(one, Kind) and one.path == path for name in one.names
        }
        for path in kinds_at
    }
    literals = {"model": get_args(ShippedKind), "model.dtype": ("float32", "bfloat16", "float16")}
    literals["optimizer"] = get_args(ShippedOptimizer)
    for place, kinds in meant.KINDS.items():
        known = places.get(place) or set(literals[place])
        assert {word for kind in kinds for word in re.findall(r"(?:^|, | or )([\w.]+)(?= \(|$)", kind)} <= known, place
        words = [word for several in kinds.values() for word in several]
        assert len(words) == len(set(words)) and not set(words) & known


def test_what_pydantic_says_is_never_shown():
    wrong = ["steps=x", "optimizer.learning_rate=x", "rewards=5", "optimizer.options=5", "model.vae_tiling=5"]
    wrong += [
        "optimizer.schedule=x",
        "model.train.targets=[]",
        "optimizer.micro_batch=x",
        "notify.events=[x]",
        "seed=1.5",
    ]
    for override in wrong:
        with pytest.raises(ConfigError) as caught:
            files.load("shapes_pcpo", [override])
        assert not re.search(
            "(?i)input should|valid|unable to|after validation|dictionary|tuple|None", str(caught.value)
        )
        assert (
            "expected a" in str(caught.value)
            or "expected one of" in str(caught.value)
            or "true | false" in str(caught.value)
        )


def test_an_override_apart_from_its_value_or_before_the_config_is_guessed():
    with pytest.raises(ConfigError, match=r"expected a\.b\.c=value \(did you mean steps=VALUE, without a space\?\)"):
        files.load("shapes_pcpo", ["steps", "5"])
    with pytest.raises(ConfigError, match=r"the config comes before what changes it, as in shapes_pcpo steps=5"):
        files.load("steps=5")
