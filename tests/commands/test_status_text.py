"""A status reads as what it says."""

import pytest

from pcpo_ray.commands.status_text import duration, lines

STATUS = {
    "run": "spot",
    "state": "training",
    "error": "",
    "step": 12,
    "steps": 300,
    "waiting": "sampling step 13: 7/8 groups",
    "reward": 0.81234,
    "reward_std": 0.05123,
    "evaluated": {"reward": 0.79, "clip_score": 0.7901},
    "evaluated_step": 10,
    "change": {"mean": 0.0412, "low": 0.0101, "high": 0.0723},
    "seconds": 31.25,
    "idle": {"samplers": 0.204, "learner": 0.4},
    "sample_age": 0.5,
    "ages": {1: 8, 0: 8},
    "max_staleness": 1,
    "in_flight": 9,
    "learners_lost": 1,
    "checkpoint": "/runs/spot/checkpoints/step-000010",
    "samplers": {
        "wanted": 3,
        "ready": 2,
        "losses": {"died": 2, "silent": 1},
        "versions": {"sampler-0": 12, "sampler-4": None},
    },
    "scorers": {"wanted": 1, "ready": 1, "losses": {}},
    "age": 0.4,
}


def test_a_status_is_a_line_a_subject():
    assert lines(STATUS) == [
        "run        spot: training, step 12 of 300, 31.2 s a step, 2.5 h left",
        "reward     0.8123 ± 0.051; evaluated at step 10: clip_score 0.7901",
        "change     the evaluated reward rose since the start: +0.0412 (95% +0.01 to +0.072)",
        "samplers   3 wanted, 2 ready; weights: sampler-0 v12, sampler-4 none yet",
        "scorers    1 wanted, 1 ready",
        "in flight  9 groups; begun: 8 of age 0, 8 of age 1 (max_staleness 1); the last step's were 0.5 versions old",
        "restarts   samplers 2 died, 1 silent; learner 1",
        "idle       samplers 20%, learner 40%",
        "phase      sampling step 13: 7/8 groups",
        "checkpoint /runs/spot/checkpoints/step-000010",
        "heard      0 s ago",
    ]


def test_a_run_that_starts_says_what_it_waits_for():
    size = {"wanted": 1, "ready": 0, "losses": {}}
    found = {
        "run": "spot",
        "state": "starting",
        "step": 0,
        "steps": 9,
        "waiting": "the cluster to grow, as it is too small so far: GPU: asked for 4, the cluster has 2",
        "samplers": size,
        "scorers": size,
        "age": 1.0,
    }
    assert lines(found)[0] == "run        spot: starting, step 0 of 9"
    assert "waits for  the cluster to grow, as it is too small so far: GPU: asked for 4, the cluster has 2" in lines(
        found
    )


def test_an_end_has_its_cause_and_waits_for_nothing():
    found = lines({**STATUS, "state": "failed", "error": "the disk is full"})
    assert "error      the disk is full" in found
    assert not any(line.startswith("waits for") for line in found)


def test_a_status_that_is_old_says_so():
    assert lines({**STATUS, "age": 45.0})[-1] == "heard      45 s ago; it is busy with something long, or hangs"


def test_a_run_of_which_storage_has_only_the_config_has_no_age():
    begun = {"run": "s3", "state": "starting", "step": 0, "steps": 0, "age": float("nan"), "stored": True}
    assert lines(begun) == ["run        s3: starting, step 0 of ?"]


def test_durations_are_in_the_unit_that_fits():
    assert [duration(seconds) for seconds in (0.4, 90, 600, 36000)] == ["0 s", "90 s", "10 min", "10.0 h"]


def test_a_reward_that_is_no_number_is_a_dash():
    none = float("nan")
    found = lines({**STATUS, "reward": none, "reward_std": none, "evaluated": {"clip_score": none}})
    assert "reward     - ± -; evaluated at step 10: clip_score -" in found


def test_a_status_wider_than_the_terminal_goes_on_below_its_beginning():
    found = lines({**STATUS, "error": "word " * 30}, width=60)
    assert max(len(line) for line in found if not line.startswith("checkpoint")) <= 60
    begun = next(n for n, line in enumerate(found) if line.startswith("error "))
    assert found[begun + 1].startswith(" " * 11 + "word") and " ".join(lines(STATUS)).split() == (
        " ".join(lines(STATUS, width=30)).split()
    )
    path = "/runs/" + "x" * 100
    assert f"folder     {path}" in lines({**STATUS, "place": path}, width=60)  # to be copied whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((-0.2, -0.3, -0.1), "the evaluated reward FELL since the start: -0.2 (95% -0.3 to -0.1)"),
        ((0.2, -0.1, 0.5), "the evaluated reward did not clearly change since the start: +0.2 (95% -0.1 to +0.5)"),
        ((0.2, None, None), "the evaluated reward moved by +0.2 since the start; too few prompts for an interval"),
    ],
)
def test_a_change_is_told_with_its_direction(change, said):
    found = lines({**STATUS, "change": dict(zip(("mean", "low", "high"), change, strict=True))})
    assert f"change     {said}" in found


def test_before_a_second_evaluation_nothing_is_said_of_a_change():
    assert not [line for line in lines({**STATUS, "change": None}) if line.startswith("change")]
