"""Any config is refused by name before a model is loaded, or its run has the properties of fuzz_properties.py."""

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.errors import PcpoError, TrainingError
from tests.support import fuzz_properties, fuzzed_configs, small
from tests.support.families import FAMILIES

MORE = int(os.environ.get("PCPO_FUZZ_EXAMPLES", "0"))
"""Examples of each kind with a new seed each time (make fuzz); 0 for the same few, as in every test run."""


def examples(few: int):
    return settings(
        max_examples=MORE or few,
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        phases=tuple(Phase) if MORE else (Phase.explicit, Phase.generate),
    )


@pytest.fixture(scope="session")
def folders(request, tmp_path_factory):
    """A small model's folder, and a copy of it that holds no weights, by the fixture's name."""
    made = tmp_path_factory.mktemp("hollow")

    @cache
    def of(model: str) -> tuple[Path, Path]:
        if model in FAMILIES:
            path = FAMILIES[model].make(tmp_path_factory.mktemp("families") / f"small-{model}")
        else:
            path = request.getfixturevalue(model)
        return path, small.hollow(path, made / model / path.name)

    return of


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A cache of encoded texts: what encoders do is none of these tests' business, and takes most of the time."""
    return tmp_path_factory.mktemp("texts")


@contextmanager
def told(model: str, changes: fuzzed_configs.Changes, packed: bool) -> Iterator[None]:
    """Say which config failed, as overrides."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"with tests.support.small.run({model}) and packed={packed}:\n{fuzzed_configs.overrides(changes)}"
        )
        raise


def let_through(hollow: Path, changes: fuzzed_configs.Changes) -> config.Run | None:
    """The run, if nothing refuses it that looks at configs only; the refusal says which key it is, and what to do."""
    try:
        run = fuzzed_configs.run_of(hollow, changes)
        session.check(run)
    except PcpoError as refusal:
        assert KEY.search(str(refusal)), f"names no key: {refusal}"
        assert REMEDY.search(str(refusal)), f"says nothing to do: {refusal}"
        return None
    return run


SECTIONS = "|".join(field.name for field in dataclasses.fields(config.Run))
KEY = re.compile(rf"\b({SECTIONS})\.\w+|\b(rewards|combine)\b|^  ({SECTIONS}): ", re.MULTILINE)
REMEDY = re.compile(r"\b(set|use|give|leave|expected|should be|needs|no default)\b")


@pytest.fixture
def trained(folders, texts, tmp_path_factory):
    """Whether a model's config is legal; then all that is to hold of its run has been seen to."""

    def trains(model: str, changes: fuzzed_configs.Changes, *, packed: bool) -> bool:
        path, hollow = folders(model)
        with told(model, changes, packed):
            run = let_through(hollow, changes)
            if run is None:
                return False
            real = dataclasses.replace(run.model, path=str(path), text_cache=str(texts))
            run = dataclasses.replace(run, model=real)
            try:
                fuzz_properties.check(run, packed=packed, folder=tmp_path_factory.mktemp("run"))
            except TrainingError as error:  # other bits at the number of pairs that was asked for, and too many
                if not isinstance(run.optimizer.micro_batch, int) or "optimizer.micro_batch=null" not in str(error):
                    raise
        return True

    return trains


@pytest.mark.parametrize("model", fuzzed_configs.MODELS)
def test_any_config_is_refused_or_accepted_before_a_model_is_loaded(folders, model):
    _, hollow = folders(model)

    @examples(60)
    @given(st.one_of(fuzzed_configs.likely(model), fuzzed_configs.anything(model)))
    def refused_by_name_or_let_through(changes):
        with told(model, changes, False):
            let_through(hollow, changes)

    refused_by_name_or_let_through()


@pytest.mark.timeout(3600 if MORE else 300)
@pytest.mark.parametrize("model", [*fuzzed_configs.MODELS, *FAMILIES])
def test_any_config_that_is_let_through_trains_as_it_says(trained, model):
    # UNets take three times as long; of the newer kinds each dtype is tried below
    @examples(1 if model in FAMILIES else 3 if model in fuzzed_configs.FLOW else 2)
    @given(fuzzed_configs.likely(model), st.booleans())
    def trains_as_it_says(changes, packed):
        trained(model, changes, packed=packed)

    trains_as_it_says()


@pytest.mark.parametrize("model", fuzzed_configs.MODELS)
def test_most_configs_that_are_drawn_are_legal(folders, model):
    _, hollow = folders(model)
    legal = []

    @examples(40)
    @given(fuzzed_configs.likely(model))
    def count(changes):
        legal.append(let_through(hollow, changes) is not None)

    count()
    assert np.mean(legal) > 0.7


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_each_newer_kind_trains_as_it_says_in_half_precision(trained, model, dtype):
    """At a time and a guidance scale that bfloat16 represents, as some pipelines give it both."""
    height, width = FAMILIES[model].size
    changes = {
        "model.dtype": dtype,
        "model.train": {"kind": "full"} if dtype == "float16" else {"kind": "lora", "rank": 2, "alpha": 1},
        "sampling.height": height,
        "sampling.width": width,
        "sampling.steps": 2,
        "sampling.shift": 1.0,
        "sampling.guidance_scale": 2.0,
        "optimizer.learning_rate": 1e-4,
        "rewards": [fuzzed_configs.BRIGHTNESS],
        "rollout.prompts": 1,
        "rollout.images": 2,
    }
    assert trained(model, changes, packed=True)


@pytest.mark.parametrize("credit", fuzzed_configs.CREDITS)
@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_credit_trains_as_it_says_in_every_dtype(trained, dtype, train, credit):
    number = list(fuzzed_configs.CREDITS).index(credit)
    model = "small_flux" if credit in fuzzed_configs.CREDITS_OF[True] else "small_sd"
    changes = {
        "model.dtype": dtype,
        "model.train": {"kind": "lora", "rank": 2, "alpha": 1} if train == "lora" else {"kind": "full"},
        "credit": {"kind": credit, **OPTIONS.get(credit, {})},
        "sampling.steps": 3,
        "sampling.guidance_scale": 1.0,
        "sampling.storage": dtype if number % 2 else "float32",
        "objective.kl": 0.1 if train == "lora" else 0.0,
        "optimizer.learning_rate": 1e-4,
        "rewards": [fuzzed_configs.BRIGHTNESS],
        "rollout.prompts": 1,
        "rollout.images": 2,
    }
    legal = trained(model, changes, packed=number % 2 == 0)
    assert legal == ((train, credit) != ("full", "interpolate"))


OPTIONS = {"released": {"w_star": 30.0}, "tilted": {"slope": 0.5}}


MOVED = {"rollout.max_staleness": 1, "optimizer.learning_rate": 1e-2}
OLDER = {**MOVED, "objective.correction": 1.2}
AGAIN = {**OLDER, "objective.old_predictions": "recomputed"}


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("small_flux", {**OLDER, "credit": {"kind": "native"}}),
        (
            "small_flux",
            {**MOVED, "objective": {"kind": "log_hinge", "clip_range": 1e-4}, "objective.clip_scale": "weight"},
        ),
        ("small_flux", {**OLDER, "objective": {"kind": "clipped_ratio", "clip_range": 0.1}, "objective.kl": 10.0}),
        (
            "small_sd",
            {**OLDER, "credit": {"kind": "interpolate"}, "objective.kl": 10.0, "sampling.guidance_scale": 1.0},
        ),
        (
            "small_flux",
            {
                "sampling.process": {"kind": "coefficients_preserving"},
                "credit": {"kind": "native"},
                "objective.log_ratio": "flow_cps",
                "objective.clip_scale": "weight",
                "objective.step_loss": "noise",
            },
        ),
        ("small_sd", {**AGAIN, "credit": {"kind": "interpolate"}, "sampling.guidance_scale": 1.0}),
        ("small_flux", {"objective": {"kind": "divergence_mask", "threshold": 1e-6}, **AGAIN, "objective.kl": 10.0}),
    ],
)
def test_what_acts_together_has_the_gradient_that_is_written_down(trained, model, changes):
    shape = {"rollout.prompts": 2, "rollout.images": 2, "rewards": [fuzzed_configs.BRIGHTNESS]}
    assert trained(model, {**changes, **shape}, packed=True)
