"""Messages reach a real webhook; one that hangs, refuses or is away costs a run nothing but the message."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pcpo_ray.config import files
from pcpo_ray.data.records import EvaluationRecord, Event
from pcpo_ray.errors import ConfigError, TrainingError
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import notifier
from pcpo_ray.training.notifier import Notifier
from pcpo_ray.training.recorder import Recorder
from tests.support import small
from tests.support.running import go

SECRET = "T0001-very-secret"


@contextmanager
def webhook(answer=lambda count: 200, before=lambda: None):
    """A server that keeps the bodies it is sent; `answer` gives the status of each."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            before()
            self.send_response(answer(len(got)))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/services/{SECRET}", got
    finally:
        server.shutdown()
        server.server_close()


def notified(settings="{}"):
    return small.run("model", name="mine", steps=8, notify=settings)


def event(kind, **details):
    return Event(time=0.0, kind=kind, details=details)


def test_each_occasion_is_one_message_that_slack_takes(monkeypatch):
    with webhook() as (url, got):
        monkeypatch.setenv("PCPO_NOTIFY_URL", url)
        made = Notifier(notified(), "/runs/mine", pytest.fail)
        change = {"reward": {"mean": 0.0312, "low": 0.021, "high": 0.0414, "deviations": 0.4}}
        made.record(EvaluationRecord(
            step=6, prompts=2, rewards={}, changes=change, alarms={}, images=2, seconds=1.0, busy_seconds={}, workers={}
        ))  # fmt: skip
        made.event(event("alarm", monitor="diversity", text="25% of what it was", action="warn", step=6))
        made.event(event("checkpoint", step=6, seconds=0.1))
        made.event(event("stopped", step=6))  # not in `events`
        made.event(event("stopped", step=6, alarm="25% of what it was: the run has stopped"))
        made.again = "pcpo-ray train a.yaml --resume"
        made.event(event("failed", error="the disk is full"))
        made.event(event("finished", step=8))
        made.close()
    bodies = [body for _, _, body in got]
    assert [body["text"] for body in bodies] == [
        "mine: ALARM at step 6 of 8, diversity: 25% of what it was; the run goes on\nfolder: /runs/mine",
        "mine: ended by its monitors at step 6 of 8: 25% of what it was: the run has stopped\nfolder: /runs/mine",
        "mine: FAILED after step 6 of 8: the disk is full\nfolder: /runs/mine\n"
        "continue with: pcpo-ray train a.yaml --resume",
        "mine: finished all of its 8 steps; held-out reward changed by +0.031 (95% interval +0.021 to +0.041)\n"
        "report: /runs/mine/report.html",
    ]
    assert [body["event"] for body in bodies] == ["alarm", "alarm", "failed", "finished"]
    assert bodies[0] | {"text": ""} == {
        "text": "", "run": "mine", "event": "alarm", "step": 6, "steps": 8, "change": change["reward"],
        "folder": "/runs/mine", "time": "1970-01-01T00:00:00+00:00",
    }  # fmt: skip
    assert {(path, kind) for path, kind, _ in got} == {(f"/services/{SECRET}", "application/json")}


def test_what_stopped_early_or_failed_at_length_is_told_as_it_is(monkeypatch):
    with webhook() as (url, got):
        monkeypatch.setenv("PCPO_NOTIFY_URL", url)
        made = Notifier(notified("{events: [stopped, failed]}"), "/runs/mine", pytest.fail)
        made.event(event("stopped", step=0))
        made.event(event("stopped", step=4))  # while its workers started again
        made.event(event("failed", error="x" * 5000))
        made.close()
    said = [body["text"].splitlines()[0] for _, _, body in got]
    assert said[:2] == ["mine: stopped before its first step", "mine: stopped after step 4 of 8, with a checkpoint"]
    assert said[2].endswith("xxx ...") and len(said[2]) < 1100


def test_an_answer_that_may_pass_is_waited_out_and_a_refusal_is_not(monkeypatch):
    lost = []
    with webhook(lambda count: {1: 503, 2: 429}.get(count, 200 if count == 3 else 404)) as (url, got):
        monkeypatch.setenv("PCPO_NOTIFY_URL", url)
        made = Notifier(notified(), "/runs/mine", lost.append)
        made.event(event("finished"))
        made.event(event("failed", error="x"))
        made.close()
    assert [body["event"] for _, _, body in got] == ["finished"] * 3 + ["failed"]
    assert lost == [
        "notify: the message 'failed' did not reach the address in PCPO_NOTIFY_URL: it answered with status 404"
    ]


def test_one_that_hangs_holds_up_the_end_alone_for_its_deadline(monkeypatch):
    monkeypatch.setattr(notifier, "FAREWELL", 0.5)
    released, lost = threading.Event(), []
    with webhook(before=lambda: released.wait(60)) as (url, _):
        monkeypatch.setenv("PCPO_NOTIFY_URL", url)
        made = Notifier(notified(), "/runs/mine", lost.append)
        began = time.monotonic()
        for _ in range(20):
            made.event(event("alarm", monitor="diversity", text="t", action="warn", step=6))
        assert time.monotonic() - began < 1.0
        made.close()
        released.set()
    assert lost[-1] == "notify: no answer from the address in PCPO_NOTIFY_URL within 0.5 s"


def test_nobody_at_the_address_is_told_without_the_address(monkeypatch):
    monkeypatch.setattr(notifier, "FAREWELL", 2.0)
    monkeypatch.setenv("PCPO_NOTIFY_URL", f"http://127.0.0.1:1/services/{SECRET}")
    lost = []
    made = Notifier(notified(), "/runs/mine", lost.append)
    made.event(event("finished"))
    made.close()
    assert "ConnectionError" in lost[0] and SECRET not in "".join(lost) and "127.0.0.1" not in "".join(lost)


@pytest.mark.parametrize("url", ["", SECRET, f"ftp://hooks/{SECRET}", f"http://[::1/{SECRET}"])
def test_an_address_that_is_none_is_refused_by_its_variables_name_only(monkeypatch, url):
    monkeypatch.setenv("MINE", url)
    with pytest.raises(ConfigError, match=r"environment variable MINE is not set|MINE holds no http") as caught:
        notifier.url_of(notified("{url_env: MINE}").notify)
    assert SECRET not in str(caught.value)


def test_a_url_in_the_config_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match=r"notify.*name of an environment variable") as caught:
        small.run("model", notify=f"{{url_env: 'https://hooks.example.com/{SECRET}'}}")
    assert SECRET not in str(caught.value)


def test_a_run_tells_of_its_end_and_no_file_of_it_knows_the_address(small_sd, tmp_path, monkeypatch):
    with webhook() as (url, got):
        monkeypatch.setenv("PCPO_NOTIFY_URL", url)
        run = small.run(small_sd, steps=1, notify="{events: [finished]}", evaluation__every=1)
        real = Recorder.create

        def create(home, run, **more):
            made = real(home, run, **more)
            made.start_trackers()
            return made

        monkeypatch.setattr(Recorder, "create", create)
        recorder = go(run, tmp_path / "run")
        recorder.close()
    assert [body["event"] for _, _, body in got] == ["finished"] and got[0][2]["change"] is not None
    assert got[0][2]["folder"] == str(tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert files.load(tmp_path / "run" / "config.yaml").notify == run.notify


def test_what_the_disk_cannot_take_is_told_all_the_same(tmp_path, monkeypatch):
    with webhook() as (url, got):
        monkeypatch.setenv("PCPO_NOTIFY_URL", url)
        recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), notified())
        recorder.start_trackers()

        def full(name, row):
            raise TrainingError("no space left")

        monkeypatch.setattr(recorder, "_append", full)
        with pytest.raises(TrainingError):
            recorder.event("failed", error="no space left")
        recorder.close()
    assert [body["event"] for _, _, body in got] == ["failed"]
