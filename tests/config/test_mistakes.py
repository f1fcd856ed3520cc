"""What is wrong with a config is said with what was meant."""

import pytest

from pcpo_ray.config import files
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


def test_an_override_apart_from_its_value_or_before_the_config_is_guessed():
    with pytest.raises(ConfigError, match=r"expected a\.b\.c=value \(did you mean steps=VALUE, without a space\?\)"):
        files.load("shapes_pcpo", ["steps", "5"])
    with pytest.raises(ConfigError, match=r"the config comes before what changes it, as in shapes_pcpo steps=5"):
        files.load("steps=5")
