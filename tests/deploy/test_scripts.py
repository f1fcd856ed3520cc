"""Shell scripts: shellcheck takes every one, and the Slurm job runs with stand-ins for Slurm's and Ray's commands."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT, deploy_files

BATCH = deploy_files.DEPLOY / "slurm" / "train.sbatch"
INLINE = {name: text for name, text in deploy_files.SCRIPTS.items() if not name.endswith(".sbatch")}
README = {f"README block {number}": text for number, text in enumerate(deploy_files.blocks())}
CLOUD = {
    f"{key} {number}": command
    for key in ("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands")
    for number, command in enumerate(deploy_files.CLOUD[key])
}


def scripts():
    """Every file of the repository that says it is for a shell."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    for name in listed.stdout.split():
        path = ROOT / name
        if path.is_file():
            with path.open("rb") as file:
                if re.match(rb"#!.*\b(ba|da|)sh\b", file.readline()):
                    yield name


def shellcheck(*arguments, text=None):
    command = [str(Path(sys.executable).parent / "shellcheck"), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", sorted({*scripts(), "deploy/slurm/train.sbatch", ".ci/run"}))
def test_shellcheck_takes_every_script(name):
    done = shellcheck(str(ROOT / name))
    assert done.returncode == 0, done.stdout + done.stderr


# SC2034: a block may set a variable for the reader's next command
@pytest.mark.parametrize("name", [*INLINE, *README, *CLOUD])
def test_shellcheck_takes_what_is_written_into_other_files(name):
    done = shellcheck("--shell=bash", "--exclude=SC2034", "-", text={**INLINE, **README, **CLOUD}[name] + "\n")
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_would_find_something():
    assert shellcheck("--shell=bash", "-", text="rm -rf $1/bin\n").returncode == 1


# -- the Slurm job, with stand-ins -------------------------------------------------------------------------------------

STAND_INS = {
    "scontrol": """
        if [ "$1" = show ]; then printf 'n1\\nn2\\n'; else echo "scontrol $*" >> "$LOG"; fi
    """,
    "srun": """
        echo "srun $*" >> "$LOG"
        while [ "${1#--}" != "$1" ]; do shift; done
        exec "$@"
    """,
    "ray": """
        if [ "$1" = health-check ]; then [ -n "${HEAD_FAILS-}" ] && exit 1; exit 0; fi
        [ -n "${HEAD_FAILS-}" ] && exit 1
        stat --format='token %a' "$RAY_AUTH_TOKEN_PATH" >> "$LOG"
        exec sleep 300
    """,
    "python": "echo 127.0.0.1",
    "pcpo-ray": """
        echo "pcpo-ray $*" >> "$LOG"
        echo "mode $RAY_AUTH_MODE token ${RAY_AUTH_TOKEN-none} address $RAY_ADDRESS" >> "$LOG"
        [ -n "${ENDS-}" ] && exit "$ENDS"
        sleep 300 & child=$!
        trap 'echo checkpoint >> "$LOG"; kill $child; exit 130' TERM
        echo ready >> "$LOG"
        wait
    """,
}


@pytest.fixture
def job(tmp_path):
    """Starts train.sbatch where the commands it calls are stand-ins; gives the process and what they were told."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in STAND_INS.items():
        path = bin_folder / name
        path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
        path.chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    started = []

    def start(*words, **environment):
        variables = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "LOG": str(log),
            "RAY_AUTH_TOKEN": "another",
            "SLURM_JOB_ID": "70001",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_ON_NODE": "8",
        }
        started.append(
            subprocess.Popen(
                ["bash", BATCH, *words],
                env={**variables, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1], log

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(log, words):
    deadline = time.monotonic() + 30
    while words not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, f"no {words!r} in {log.read_text(encoding='utf-8')}"
        time.sleep(0.05)


def left_behind(process):
    """Processes of the job's session that live on."""
    command = ["ps", "-s", str(process.pid), "-o", "stat=,args="]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()
    return [found for found in listed if not found.startswith("Z")]  # ended, and not yet collected by process 1


def test_a_job_starts_a_node_of_rays_on_each_of_its_own_and_the_run(job):
    process, log = job("configs/a.yaml", "/shared/runs", "name=first", "workers.samplers={workers: 6}")
    wait_for(log, "--exclude=n1")
    wait_for(log, "ready")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    told = log.read_text(encoding="utf-8")
    port = 20000 + 70001 % 5000 * 2
    assert re.search(rf"srun .*--nodelist=n1 ray start --head --block .*--port={port} ", told)
    assert re.search(rf"srun .*--nodes=1 --ntasks=1 --exclude=n1 ray start --block --address=127.0.0.1:{port} ", told)
    words = "configs/a.yaml --runs /shared/runs --resume-if-started name=first workers.samplers={workers: 6}"
    assert f"pcpo-ray train {words}" in told.splitlines()
    assert f"address 127.0.0.1:{port}" in told
    assert not left_behind(process)


def test_a_jobs_token_is_its_owners_alone_and_goes_with_it(job, tmp_path):
    process, log = job("a.yaml", "/shared/runs")
    wait_for(log, "ready")
    (token,) = (tmp_path / ".ray").iterdir()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text(encoding="utf-8"))
    wait_for(log, "mode token token none")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert not token.exists()
    assert "token 600" in log.read_text(encoding="utf-8")


def test_before_the_time_limit_the_run_saves_and_the_job_queues_again(job):
    process, log = job("a.yaml", "/shared/runs")
    wait_for(log, "ready")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    told = log.read_text(encoding="utf-8").splitlines()
    assert told.index("checkpoint") < told.index("scontrol requeue 70001")
    assert process.returncode == 130, output
    assert not left_behind(process)


def test_a_job_that_is_told_to_end_writes_a_checkpoint_and_stays_away(job):
    process, log = job("a.yaml", "/shared/runs")
    wait_for(log, "ready")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    told = log.read_text(encoding="utf-8")
    assert "checkpoint" in told
    assert "requeue" not in told
    assert process.returncode == 130
    assert not left_behind(process)


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_ends_as_its_run_did(job, status):
    process, log = job("a.yaml", "/shared/runs", ENDS=str(status))
    process.communicate(timeout=60)
    assert process.returncode == status
    assert "requeue" not in log.read_text(encoding="utf-8")
    assert not left_behind(process)


def test_a_head_that_does_not_start_ends_the_job_with_a_word(job):
    process, log = job("a.yaml", "/shared/runs", HEAD_FAILS="yes")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: Ray's head on n1 ended" in output
    assert "pcpo-ray" not in log.read_text(encoding="utf-8")
    assert not left_behind(process)


def test_without_a_config_the_job_says_how_it_is_called(job):
    process, _ = job()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "usage: sbatch" in output


def test_a_job_never_stops_rays_that_are_not_its_own():
    assert not re.search(r"\bray stop\b|\bpkill\b|\bkillall\b", deploy_files.BATCH)
