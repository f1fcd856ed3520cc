"""The commands that talk to a cluster: what they refuse before they ask anyone, and how a run is started again."""

import io
import json
import zipfile

import pytest

from pcpo_ray.cluster.control import jobs
from pcpo_ray.commands import operate
from pcpo_ray.config import files
from pcpo_ray.errors import ClusterError, EndedError
from pcpo_ray.runs import checkpoints
from tests.support import small
from tests.support.dashboard import VERSION, server

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def config(small_sd, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(files.dump(small.run(small_sd, steps=2)))
    return path


def test_help_lists_all_commands(command):
    status, said, _ = command("--help")
    assert status == 0
    for name in ("train", "evaluate", "sample", "report", *operate.COMMANDS):
        assert f"│ {name} " in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--runs", "runs"], "got --runs 'runs'; expected an absolute path that all machines of the cluster share"),
        (["--runs", "/runs", "stpes=3"], "did you mean 'steps'"),
        (["--runs", "/runs", "--address", "127.0.0.1:1"], ":1: failed to connect"),
        (["--runs", "/runs", "--address", NOWHERE], "no Ray dashboard at http://127.0.0.1:1"),
    ],
)
def test_a_submission_that_cannot_be_is_refused(command, config, words, expected):
    status, said, errors = command("submit", config, *words)
    assert (status, said) == (1, "")
    assert errors.startswith("error: ") and expected in errors and "Traceback" not in errors


def test_a_submission_says_what_goes_along_and_what_stays_and_sends_that(command, config, tmp_path):
    """To a server in the place of Ray's dashboard, which keeps what it is sent."""
    for name, text in {".env": "hidden", "keys/login.pem": "asked for", "README.md": "read"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "out").symlink_to("/etc")
    sent = {}

    def answer(handler):
        if handler.body:
            sent[handler.path.rpartition("/")[2] or "job"] = handler.body
        known = {"/api/version": VERSION, "/api/jobs/": (200, '{"submission_id": "small-1", "job_id": "small-1"}')}
        if handler.command == "GET" and handler.path == "/api/jobs/":
            return 200, "[]"
        return known.get(handler.path, (200 if handler.command == "PUT" else 404, ""))

    with server(answer) as (address, _):
        with_password = address.replace("//", "//me:hunter2@")
        words = ("submit", config, "--runs", "/runs", "--no-follow", "--address", with_password)
        status, said, errors = command(*words, "--include-secret", "keys/login.pem")
    assert (status, errors) == (0, "")
    assert (
        "goes along: 3 files" in said
        and "stays, as it is a link to a folder, or leads out of this one: out -> /etc" in said
    )
    assert "stays, as it looks like a secret: .env; --include-secret PATH takes a file along all the same" in said
    assert "hunter2" not in said and b"hunter2" not in sent["job"]
    asked = json.loads(sent.pop("job"))
    (package,) = sent.values()
    with zipfile.ZipFile(io.BytesIO(package)) as found:
        assert sorted(found.namelist()) == ["README.md", "keys/login.pem", "small.yaml"]
    assert asked["metadata"][jobs.AGAIN].endswith(f"--address {address} --include-secret keys/login.pem")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status", "spot"], "no Ray dashboard at"),
        (["scale", "spot", "--samplers", "2"], "no Ray dashboard at"),
        (["scale", "spot", "--samplers", "0"], "asked for samplers 0; expected at least 1"),
        (["scale", "spot", "--max-staleness", "-1"], "asked for max_staleness -1; expected at least 0"),
        (["scale", "spot"], "nothing was asked for; give --samplers, --scorers or --max-staleness"),
        (["stop", "spot"], "no Ray dashboard at"),
        (["logs", "spot"], "no Ray dashboard at"),
        (["logs", "spot", "--events"], "no Ray dashboard at"),
        (["chaos", "spot", "--kill", "everyone"], "no fault is named 'everyone'"),
    ],
)
def test_a_command_that_reaches_nobody_or_asks_for_nonsense_is_one_message(command, words, expected):
    status, said, errors = command(*words, "--address", NOWHERE)
    assert (status, said) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and expected in errors


@pytest.mark.parametrize("words", [("submit", "small.yaml", "--runs", "/runs"), ("stop", "small"), ("logs", "small")])
def test_the_cluster_is_the_one_that_rays_own_job_commands_ask(command, config, monkeypatch, words):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    status, _, errors = command(*words)
    assert status == 1 and f"no Ray dashboard at {NOWHERE}" in errors
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", NOWHERE.replace(":1", ":2"))
    status, _, errors = command(*words)
    assert status == 1 and f"no Ray dashboard at {NOWHERE.replace(':1', ':2')}" in errors


def test_a_run_without_its_cluster_ends_at_once_and_leaves_no_folder(command, config, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    status, _, errors = command("train", config)
    assert status == 1 and "no Ray cluster at" in errors and "Connection refused" in errors
    assert "Traceback" not in errors and not (tmp_path / "runs" / "small").exists()


def test_watching_shows_every_status_to_the_last(monkeypatch):
    monkeypatch.setattr(operate, "EVERY", 0.0)
    said, shown = [{"state": state} for state in ("training", "training", "stopped", "never")], []
    operate._each(lambda: said.pop(0), True, shown.append)
    assert [found["state"] for found in shown] == ["training", "training", "stopped"]
    operate._each(lambda: {"state": "training"}, False, shown.append)
    assert len(shown) == 4


def test_a_run_that_is_watched_and_killed_is_an_error(monkeypatch):
    monkeypatch.setattr(operate, "EVERY", 0.0)
    said = [{"state": "training"}]

    def look():
        if said:
            return said.pop()
        raise EndedError("spot has ended")

    with pytest.raises(ClusterError, match="spot has ended without a last word: it was killed; see its log"):
        operate._each(look, True, lambda found: None)


def test_resume_if_started_starts_a_run_and_then_continues_it(command, config, tmp_path):
    again = ("train", config, "--local", "--resume-if-started")
    status, said, errors = command(*again)
    assert (status, errors) == (0, "") and "resuming" not in said
    status, said, errors = command(*again, "steps=3")
    assert (status, errors) == (0, "") and "resuming small after step 2" in said
    assert checkpoints.folder_for(tmp_path / "runs" / "small", 3).is_dir()
    status, said, errors = command(*again, "steps=3", "seed=7")  # another run under its name
    assert status == 1 and "was started with another config: seed 0 -> 7" in errors


def test_resume_stays_strict_and_both_flags_are_one_too_many(command, config):
    status, _, errors = command("train", config, "--local", "--resume")
    assert status == 1 and "there is no run at runs/small to resume" in errors
    status, _, errors = command("train", config, "--local", "--resume", "--resume-if-started")
    assert (status, errors) == (1, "error: got --resume and --resume-if-started; give one of them\n")


def test_a_job_whose_runs_would_go_with_its_working_folder_is_refused(command, config, tmp_path, monkeypatch):
    here = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    status, _, errors = command("train", config, "--local")
    assert status == 1 and "which Ray deletes after the job; give --runs an absolute path" in errors
    assert not (here / "runs").exists()
