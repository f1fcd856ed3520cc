"""A terminal that is closed, slow, full or ASCII ends no command and holds none up."""

import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from pcpo_ray.config import files
from pcpo_ray.runs import checkpoints
from tests.support import ROOT, small

SAYS = """
import sys, time
from pcpo_ray.process import terminal
with terminal.buffered_output():
    for n in range({lines}):
        print("line", n, "\\u00b1 caf\\u00e9 \\udcff")
        time.sleep({pause})
    print("to stderr \\u00b1", file=sys.stderr)
    open({printed!r}, "w").write("printed")
open({done!r}, "w").write("done")
"""


def begun(folder, *, lines=10, pause=0.01, variables=(), **streams):
    """A process that prints lines and then writes a file."""
    done, printed = folder / "done", folder / "printed"
    program = SAYS.format(lines=lines, pause=pause, done=str(done), printed=str(printed))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **dict(variables)}
    return subprocess.Popen([sys.executable, "-c", program], env=env, **streams), done


def test_a_reader_that_leaves_ends_nothing(tmp_path):
    process, done = begun(tmp_path, lines=20, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"line 0")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0 and done.exists()


def test_a_reader_that_stalls_holds_nothing_up_and_is_told_what_it_missed(tmp_path):
    process, done = begun(tmp_path, lines=30_000, pause=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if done.exists():
            break
        time.sleep(0.1)
    assert done.exists() and process.wait(60) == 0  # of the pipe nothing has been read
    written = process.stdout.read().decode()
    process.stdout.close()
    assert written.startswith("line 0 ") and len(written) < 2_000_000


def test_a_slow_reader_gets_the_count_of_lines_that_were_left_out(tmp_path):
    process, done = begun(tmp_path, lines=30_000, pause=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not (tmp_path / "printed").exists():
        assert process.poll() is None
        time.sleep(0.05)
    lines = process.stdout.read().decode().splitlines()
    process.stdout.close()
    assert process.wait(60) == 0 and done.exists()
    told = [line for line in lines if "lines were left out" in line]
    left_out = sum(int(line.removeprefix("(").split()[0]) for line in told)
    assert left_out > 10_000 and len(lines) - len(told) + left_out == pytest.approx(30_000, abs=2)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "line 0 \\xb1 caf\\xe9 \\udcff"),
        ({"PYTHONIOENCODING": "latin-1"}, "line 0 ± café \\udcff"),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "line 0 \\xb1 caf\\xe9 \\udcff"),
        ({"PYTHONIOENCODING": "utf-8"}, "line 0 ± café \\udcff"),
    ],
)
def test_what_a_terminal_cannot_show_is_escaped(tmp_path, variables, expected):
    process, done = begun(tmp_path, variables=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    written, errors = process.communicate(timeout=60)
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    assert (process.returncode, written.decode(encoding).splitlines()[0]) == (0, expected)
    assert done.exists() and errors.count(b"\n") == 1


def test_a_full_disk_behind_it_and_closed_streams_cost_nothing(tmp_path):
    with open("/dev/full", "wb") as full:
        process, done = begun(tmp_path, stdout=full, stderr=full)
        assert process.wait(60) == 0 and done.exists()
    done.unlink()
    process, done = begun(tmp_path, preexec_fn=lambda: os.closerange(0, 3))
    assert process.wait(60) == 0
    assert done.read_text() == "done"  # and nothing of what was printed


def test_a_terminal_that_is_closed_or_stopped_costs_nothing(tmp_path):
    for ending in ("close", "stop"):
        here, there = pty.openpty()
        process, done = begun(tmp_path, lines=3000, pause=0.0005, stdout=there, stderr=there)
        if ending == "stop":
            termios.tcflow(there, termios.TCOOFF)
        os.close(there)
        if ending == "close":
            assert os.read(here, 100).startswith(b"line 0")
            os.close(here)
        assert process.wait(60) == 0 and done.exists(), ending
        done.unlink()
        if ending == "stop":
            os.close(here)


def run_of(small_sd, tmp_path, **more):
    path = tmp_path / "small.yaml"
    path.write_text(files.dump(small.run(small_sd, steps=3, **more)))
    return path


def command(*words):
    return [sys.executable, "-m", "pcpo_ray.commands.app", *map(str, words)]


def test_a_run_whose_reader_leaves_goes_on_to_its_report(small_sd, tmp_path):
    path = run_of(small_sd, tmp_path)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    words = command("train", path, "--local", "--runs", tmp_path)
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=tmp_path)
    run.stdout.readline()
    run.stdout.close()
    errors = run.stderr.read().decode()
    run.stderr.close()
    assert (run.wait(120), errors) == (0, "")
    assert (tmp_path / "small" / "report.html").is_file()
    assert checkpoints.newest(tmp_path / "small", pytest.fail) == checkpoints.folder_for(tmp_path / "small", 3)
    for shown in (["report", "small"], ["sample", "small", "a café"]):
        done = subprocess.run(command(*shown), capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
        assert done.returncode == 0 and "Traceback" not in done.stderr and done.stdout, (shown, done.stderr)


def test_a_command_that_shows_something_ends_with_its_reader(monkeypatch, tmp_path):
    program = (
        "import itertools\nfrom pcpo_ray.process import terminal\n"
        "with terminal.buffered_output():\n    terminal.heed()\n"
        "    for n in itertools.count(): print(n)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert [shown.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
    shown.stdout.close()
    assert "BrokenPipeError" in shown.communicate(timeout=60)[1]
