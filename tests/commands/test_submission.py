"""What `submit` checks before a job is made: as much as this machine can see of what `train` checks."""

import pytest

from pcpo_ray.commands import submission
from pcpo_ray.config import files
from pcpo_ray.errors import ConfigError, ModelError, PcpoError, RunError
from tests.support import small


def test_a_run_that_is_right_passes_and_one_that_is_wrong_does_not(small_sd, tmp_path):
    assert submission.check(small.run(small_sd), str(tmp_path)) == []
    with pytest.raises(PcpoError, match="absent:Reward"):
        submission.check(small.run(small_sd, rewards="[{kind: 'absent:Reward'}]"), str(tmp_path))
    with pytest.raises(ModelError, match="model_index"):
        submission.check(small.run("models/absent-sd"), str(tmp_path))


def test_what_only_the_cluster_has_is_left_to_it_and_all_else_is_checked(small_sd, tmp_path):
    run = small.run("/shared/models/small-sd")
    (line,) = submission.check(run, str(tmp_path))
    assert line == (
        "not checked here, as /shared/models/small-sd is not on this machine: it must be on all of the cluster's"
    )
    with pytest.raises(PcpoError, match="absent:Reward"):
        submission.check(small.run("/shared/small-sd", rewards="[{kind: 'absent:Reward'}]"), str(tmp_path))


def test_another_run_of_the_name_is_refused_where_its_folder_can_be_seen(small_sd, tmp_path):
    run = small.run(small_sd)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.yaml").write_text(files.dump(run))
    (tmp_path / "small" / "metrics.jsonl").touch()
    assert submission.check(small.run(small_sd, steps=9), str(tmp_path)) == []
    again = r"Continue the run itself with: pcpo-ray train .*/small/config.yaml --runs .* --resume"
    with pytest.raises(RunError, match=rf"another config: seed 0 -> 7; put it back as it was, or submit .*{again}"):
        submission.check(small.run(small_sd, seed=7), str(tmp_path))


def test_a_url_of_runs_is_not_looked_into(small_sd):
    assert submission.check(small.run(small_sd), "s3://bucket/runs") == []
    with pytest.raises((ConfigError, PcpoError)):
        submission.check(small.run(small_sd, sampling__steps=1001), "s3://bucket/runs")


def test_the_webhook_is_left_to_the_cluster_where_the_driver_runs(small_sd, tmp_path, monkeypatch):
    monkeypatch.delenv("PCPO_NOTIFY_URL", raising=False)
    (line,) = submission.check(small.run(small_sd, notify="{}"), str(tmp_path))
    assert line == "not checked here: PCPO_NOTIFY_URL, which must hold the webhook's URL on the cluster's nodes"


def test_more_steps_are_another_config_if_the_schedule_ends_with_them(small_sd, tmp_path):
    (tmp_path / "small").mkdir()
    changes = {"optimizer__schedule": "cosine"}
    (tmp_path / "small" / "config.yaml").write_text(files.dump(small.run(small_sd, **changes)))
    (tmp_path / "small" / "metrics.jsonl").touch()
    with pytest.raises(RunError, match="was started with another config: steps 2 -> 9"):
        submission.check(small.run(small_sd, steps=9, **changes), str(tmp_path))
