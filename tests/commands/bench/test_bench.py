"""pcpo-ray bench as users call it."""

import json
from pathlib import Path

import pytest

from pcpo_ray.commands import bench
from pcpo_ray.commands.bench import results, running, scoring
from pcpo_ray.config import files
from pcpo_ray.errors import BenchError
from tests.support import small


@pytest.fixture
def config(small_sd, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(files.dump(small.run(small_sd)))
    return path


def test_help_names_every_benchmark(command):
    status, said, _ = command("bench", "--help")
    assert status == 0
    assert all(name in said for name in (*bench.BENCHES, "all", "--compare"))
    for name in (*bench.BENCHES, "all"):
        status, said, _ = command("bench", name, "--help")
        assert status == 0 and "--repeats" in said and "--out" in said


def test_measurements_are_shown_written_and_compare_equal_to_themselves(command, config):
    arguments = ("rollout.prompts=2", "--repeats", 2, "--out", "a.json")
    status, said, errors = command("bench", "sampler", config, *arguments)
    assert (status, errors) == (0, "")
    assert "sampler, CPU" in said and "results: a.json" in said
    written = json.loads(Path("a.json").read_text())
    (measured,) = written["benches"]
    assert (measured["name"], measured["repeats"]) == ("sampler", 2)
    assert written["source"] == f"{config} rollout.prompts=2"
    assert len(measured["rows"][0]["figures"]) == len(measured["rows"][0]["limits"]) == 2
    run = files.load(config, ["rollout.prompts=2"])
    assert measured["config"] == results.digest(run)
    status, _, errors = command("bench", "sampler", config, *arguments)
    assert status == 1 and "a.json is there already; give another name, such as a-2.json" in errors
    status, said, errors = command("bench", "--compare", "a.json", "a.json")
    assert (status, errors) == (0, "")
    assert "1.000" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sampler", "absent.yaml"), "no config file at absent.yaml"),
        (("--compare", "a.json", "b.json"), "no results at a.json"),
    ],
)
def test_bad_input_is_one_message(command, arguments, words):
    status, _, errors = command("bench", *arguments)
    assert status == 1
    assert errors.startswith("error: ") and words in errors and "Traceback" not in errors


def test_a_benchmark_that_fails_costs_none_of_the_others_theirs(config, tmp_path, monkeypatch):
    from pcpo_ray.commands.bench import page

    def broken(run, repeats, say):
        raise BenchError("the scorer is on fire")

    monkeypatch.setattr(scoring, "measure", broken)
    out, console = tmp_path / "a.json", page.wide()
    with pytest.raises(BenchError, match="scoring failed: the scorer is on fire"):
        running.command(["scoring", "trajectory"], config, [], repeats=1, out=out, console=console)
    assert [one.name for one in results.read(out).benches] == ["trajectory"]
