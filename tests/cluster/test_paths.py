"""Workers run in another folder than the command: paths mean what they mean where it was given."""

import os

import pytest
import ray

from pcpo_ray.cluster.connect import connect
from pcpo_ray.config import paths
from tests.support import small
from tests.support.running import go

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]

JUDGE = """
class Judge:
    def __init__(self, file):
        with open(file) as found:
            self.score_given = float(found.read())

    def score(self, images, prompts):
        return [self.score_given + n for n in range(len(images))]
"""


@ray.remote(num_cpus=0)
def folder():
    return os.getcwd()


def test_paths_of_config_and_custom_rewards_are_found_by_every_worker(small_sd, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sd").symlink_to(small_sd)
    (tmp_path / "judge_of_paths.py").write_text(JUDGE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "given.txt").write_text("5")
    (tmp_path / "prompts.txt").write_text("".join(f"a cat on {n} mats\n" for n in range(99)))
    monkeypatch.chdir(tmp_path)
    assert ray.get(folder.remote(), timeout=60) != str(tmp_path)
    run = paths.absolute(
        small.run(
            "models/sd",
            steps=1,
            prompts="{kind: file, path: prompts.txt}",
            model__text_cache="texts",
            rewards="[{kind: 'judge_of_paths:Judge', options: {file: data/given.txt}}]",
        )
    )
    stages = connect(run)
    try:
        recorder = go(run, tmp_path / "run", stages=stages)
    finally:
        stages.close()
    (row,) = [row for row in recorder.metrics() if row["kind"] == "train"]
    assert row["reward_mean"] == 6.5 and any((tmp_path / "texts").iterdir())
