"""The first seconds of `train`: what is wrong is said, and the first sign given, before anything heavy is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

import pcpo_ray
from pcpo_ray.commands import begin, next_steps
from pcpo_ray.config import files
from pcpo_ray.errors import StopAskedError
from tests.support import small
from tests.support.running import saved
from tests.support.unloaded import PROGRAM


@pytest.fixture
def first(hollow, tmp_path):
    """What `train` says before it loads torch, diffusers or Ray."""

    def say(*words):
        program = PROGRAM.format(words=["train", str(hollow), *words])
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)

    return say


def test_the_first_sign_comes_before_torch_is_loaded(first):
    done = first("--local")
    assert done.stdout.splitlines()[0].endswith("INFO    loading torch and diffusers")
    assert "came to load torch" in done.stderr


@pytest.mark.parametrize("form", [(), ("--log-json",)])
def test_a_failure_is_told_once_where_both_streams_are_read(hollow, tmp_path, form):
    raises = PROGRAM.replace("raise SystemExit(", "from pcpo_ray.errors import RunError; raise RunError(")
    words = [sys.executable, "-c", raises.format(words=["train", str(hollow), "--local", *form])]
    both = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, timeout=60)
    assert both.returncode == 1 and both.stdout.count("came to load torch") == 1 and "failed: came" in both.stdout
    apart = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert apart.returncode == 1 and "failed: came to load torch" in apart.stdout
    assert apart.stderr == "error: came to load torch\n"


def test_a_folder_that_is_there_or_is_not_is_said_before_ray_is_loaded(first, tmp_path):
    (tmp_path / "runs" / "small").mkdir(parents=True)
    done = first()
    assert (done.returncode, done.stdout) == (1, "") and "exists; continue it with --resume" in done.stderr
    done = first("name=other", "--resume")
    assert (done.returncode, done.stdout) == (1, "") and "no run at runs/other to resume" in done.stderr


def test_a_run_that_is_continued_with_another_config_is_refused_at_once(first, hollow, tmp_path):
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(files.dump(files.load(hollow)))
    (folder / "metrics.jsonl").touch()
    done = first("seed=7", "--resume")
    assert (done.returncode, done.stdout) == (1, "") and "was started with another config: seed 0 -> 7" in done.stderr
    assert "came to load" in first("steps=9", "--resume", "--local").stderr


def test_a_wrong_log_level_is_refused(command, hollow):
    status, _, errors = command("train", hollow, "--local", "--log-level", "loud")
    assert status == 1 and "got --log-level 'loud'" in errors


def test_a_job_is_continued_by_the_command_that_submitted_it(monkeypatch):
    words = (Path("a.yaml"), ["steps=2"])
    continued = begin.continuing(*words, local=True, runs="my runs")
    assert continued == "pcpo-ray train a.yaml steps=2 --local --runs 'my runs' --resume"
    monkeypatch.setenv(begin.AGAIN, "pcpo-ray submit a.yaml --runs /shared")
    assert begin.continuing(*words, local=False, runs="my runs") == "pcpo-ray submit a.yaml --runs /shared"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_to_do_next_is_a_command_each(small_sd, tmp_path, kind):
    run = small.run(small_sd, model__train=f"{{kind: {kind}}}")
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(files.dump(run))
    saved(folder, 2)
    again = begin.continuing(Path("a.yaml"), ["steps=2", "seed=1"], local=True, runs="runs")
    lines = next_steps.after(pcpo_ray.load_run(folder), again)
    text = "\n".join(lines)
    assert lines[0].startswith("next") and f"file://{folder}/report.html" in text
    assert f"pcpo-ray sample {folder} 'a" in text and "--compare" in text
    assert ("load_lora_weights" if kind == "lora" else "from_pretrained") in text and "step-000002" in text
    assert "pcpo-ray train a.yaml seed=1 steps=4 --local --resume" in text
    assert "pcpo-ray train a.yaml steps=2 seed=1 name=small-own-reward rewards=my_rewards:MyReward --local" in lines[-1]
    assert "--resume" not in lines[-1]  # another run, with this one's settings


def test_where_a_shell_does_not_find_pcpo_ray_the_activation_comes_first(small_sd, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(files.dump(small.run(small_sd)))
    program = tmp_path / "bin" / "pcpo-ray"
    program.parent.mkdir()
    (program.parent / "activate").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.chdir(tmp_path)
    assert next_steps.after(pcpo_ray.load_run(tmp_path), "")[0] == "next (first, once in a shell: . bin/activate):"
    program.touch(mode=0o755)
    assert next_steps.after(pcpo_ray.load_run(tmp_path), "")[0] == "next:"


def test_a_run_that_was_stopped_is_to_go_on_to_its_end(small_sd, tmp_path):
    (tmp_path / "config.yaml").write_text(files.dump(small.run(small_sd, steps=6)))
    (tmp_path / "events.jsonl").write_text('{"kind": "started", "time": 1.0}\n{"kind": "stopped", "time": 2.0}\n')
    lines = next_steps.after(pcpo_ray.load_run(tmp_path), "pcpo-ray submit a.yaml")
    assert lines[-4:-2] == ["  go on to step 6:", "    pcpo-ray submit a.yaml"] and "more steps" not in "".join(lines)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", ":1: failed to connect"),
        ("ray://127.0.0.1:1", "failed: no Ray cluster at 'ray://127.0.0.1:1': "),
        ("", "loading torch"),
    ],
)
def test_a_cluster_that_does_not_answer_is_told_before_torch_is_loaded(hollow, tmp_path, monkeypatch, address, words):
    monkeypatch.setenv("RAY_ADDRESS", address)
    program = PROGRAM.replace('"ray", ', "").format(words=["train", str(hollow)])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert words in done.stdout.splitlines()[-1] and ("torch" in done.stderr) == ("torch" in words)


def test_a_run_that_is_stopped_before_its_workers_are_ready_has_not_failed(small_sd, tmp_path, monkeypatch):
    config = tmp_path / "a.yaml"
    config.write_text(files.dump(small.run(small_sd)))

    def ended_by(error):
        def asked(order, display):
            raise error

        monkeypatch.setattr(begin, "train", asked)
        try:
            begin.command(
                config, [], local=False, resume=False, runs="runs", metrics_port=None, log_level="info", log_json=False
            )
        except KeyboardInterrupt:
            return "by Ctrl-C"
        return "well"

    assert (ended_by(StopAskedError()), ended_by(KeyboardInterrupt())) == ("well", "by Ctrl-C")


def test_a_run_whose_schedule_has_ended_is_not_to_be_trained_longer(small_sd, tmp_path):
    (tmp_path / "config.yaml").write_text(files.dump(small.run(small_sd, optimizer__schedule="cosine")))
    lines = next_steps.after(pcpo_ray.load_run(tmp_path), "pcpo-ray train a.yaml --resume")
    assert len(lines) > 1 and "more steps" not in "".join(lines)
