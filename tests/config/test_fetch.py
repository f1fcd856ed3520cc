"""The commands that fetch rewards' files are those of the recipes, to the places that the config names."""

import shlex

import pytest

from pcpo_ray.config import Aesthetic, Hps, PickScore, fetch, files, recipes


@pytest.mark.parametrize("name", recipes.names())
def test_a_reward_is_fetched_as_its_recipe_says(name):
    run = files.load(name)
    of_rewards = [line for line in recipes.downloads(name) if "--local-dir" in shlex.split(line)]
    assert [one.command for reward in run.rewards for one in fetch.of(reward)] == of_rewards


def test_files_go_where_the_config_names_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hps = Hps(kind="hps_v2.0", weights=str(tmp_path / "data" / "HPS_v2_compressed.pt"))
    (found,) = fetch.absent(hps)
    assert found.command == "hf download xswu/HPSv2 HPS_v2_compressed.pt --local-dir data"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "HPS_v2_compressed.pt").touch()
    assert not fetch.absent(hps)
    named = Aesthetic(kind="aesthetic", head="/models/head.pth", model="shapes-clip")
    assert [one.key for one in fetch.of(named)] == ["head"]
    assert [one.key for one in fetch.of(PickScore(kind="pickscore", model="/models/pick"))] == ["model"]
