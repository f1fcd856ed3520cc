"""The server of rewards over real HTTP: whole groups, several callers in one call, and callers that give up."""

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import requests
import torch

from pcpo_ray import config, rewards
from pcpo_ray.data.types import Prompt
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import http_client, remote, serve
from pcpo_ray.workers.scorer import Scorer
from tests.support import small
from tests.support.trajectories import task

IMAGES = np.random.default_rng(0).integers(0, 256, size=(4, 9, 7, 3), dtype=np.uint8)


class Spread:
    """The distance of an image's brightness from its group's, plus the prompt's length."""

    def score_group(self, images, prompt):
        means = images.mean(axis=(1, 2, 3))
        return abs(means - means.mean()) + len(prompt)


class Gated:
    """Brightness of images whose prompts are `good`; each call waits for `gate`. `calls` has each call's prompts."""

    def __init__(self):
        self.gate, self.calls, self.threads = threading.Semaphore(0), [], set()

    def score(self, images, prompts):
        self.calls.append(list(prompts))
        self.threads.add(threading.get_ident())
        assert self.gate.acquire(timeout=30)
        if "bad" in prompts:
            raise ValueError("a prompt that cannot be read")
        return [float(image.mean()) for image in images][: -1 if "short" in prompts else None]


def client(url, **changes):
    settings = {"url": url, "timeout": 20.0, "patience": 0.0, **changes}
    return rewards.load(config.Remote(kind="remote", **settings), torch.device("cpu"))


@pytest.fixture
def asking():
    """Asks from threads of their own."""
    with ThreadPoolExecutor(16) as threads:
        yield threads.submit


def until(condition):
    """Wait for what other threads do."""
    assert any(condition() or threading.Event().wait(0.01) for _ in range(3000))


def waiting(app):
    """The requests that have arrived and wait for their turn."""
    return len(app.state.turns.waiting)


@pytest.mark.parametrize("format", ["json", "npz"])
def test_a_whole_group_is_scored_over_the_wire_to_the_bit(served, format):
    made = client(served(serve.application(Spread())), format=format, group=True)
    assert isinstance(made, rewards.GroupReward)
    assert made.score_group(IMAGES, "a cät") == Spread().score_group(IMAGES, "a cät").tolist()


@pytest.mark.parametrize(("reward", "group", "words"), [(Spread(), False, "true"), (Gated(), True, "false")])
def test_a_server_with_the_other_method_is_refused_at_the_start(served, reward, group, words):
    with pytest.raises(RewardError, match=rf"was expected; set `group: {words}` for it"):
        client(served(serve.application(reward)), group=group)


def test_prompts_of_several_groups_are_refused_by_the_server(served):
    url = served(serve.application(Spread()))
    body, kind = remote.as_npz(IMAGES, ["a", "b", "a", "a"])
    answer = requests.post(f"{url}/score_group", data=body, headers={"Content-Type": kind}, timeout=10)
    assert answer.status_code == 400 and "2 prompts; expected one group's" in answer.json()["error"]
    answer = requests.post(f"{url}/score", data=body, headers={"Content-Type": kind}, timeout=10)
    assert answer.status_code == 400 and "POST /score_group" in answer.json()["error"]


def test_each_group_of_an_evaluation_is_sent_by_itself(served, small_sd):
    url = served(serve.application(Spread()))
    run = small.run(small_sd, rewards=f"[{{kind: remote, url: '{url}', label: spread, group: true}}]")
    images = np.concatenate([IMAGES, IMAGES[::-1] // 2])
    one, another = Prompt(index=0, text="one"), Prompt(index=1, text="another")
    evaluated = task(purpose="evaluate", prompt=one, more=(another,))
    scores, failures, _ = Scorer(run, torch.device("cpu")).score(evaluated, images)
    parts = [Spread().score_group(images[at : at + 4], text) for at, text in ((0, "one"), (4, "another"))]
    assert scores["spread"] == np.concatenate(parts).tolist() and not failures


def started(served, asking, gated, together, groups):
    """Serve `gated` and ask about each group of prompts while its first call lasts; returns the answers to come."""
    app = serve.application(gated, together=together)
    made = client(served(app))
    answers = [asking(made.score, IMAGES[: len(groups[0])], groups[0])]
    until(lambda: gated.calls)
    for arrived, prompts in enumerate(groups[1:], 1):
        answers.append(asking(made.score, IMAGES[: len(prompts)], prompts))
        until(lambda arrived=arrived: waiting(app) == arrived)
    return answers


def test_callers_that_wait_are_scored_together_each_with_its_own(served, asking):
    gated = Gated()
    groups = [["a"], ["b", "c"], ["d"], ["e", "f", "g"], ["h"]]
    answers = started(served, asking, gated, 3, groups)
    gated.gate.release(9)
    bright = IMAGES.mean(axis=(1, 2, 3)).tolist()
    assert [answer.result(30) for answer in answers] == [bright[: len(prompts)] for prompts in groups]
    assert gated.calls == [["a"], ["b", "c", "d", "e", "f", "g"], ["h"]] and len(gated.threads) == 1


def test_by_default_each_caller_is_scored_alone(served, asking):
    gated = Gated()
    answers = started(served, asking, gated, 1, [["a"], ["b", "c"]])
    gated.gate.release(9)
    assert [len(answer.result(30)) for answer in answers] == [1, 2] and gated.calls == [["a"], ["b", "c"]]


def test_images_of_another_size_are_not_put_together(served, asking):
    gated = Gated()
    app = serve.application(gated, together=4)
    made = client(served(app))
    first = asking(made.score, IMAGES, ["a"] * 4)
    until(lambda: gated.calls)
    others = [asking(made.score, IMAGES[:, :side], ["b"] * 4) for side in (8, 8, 7)]
    until(lambda: waiting(app) == 3)
    gated.gate.release(9)
    assert [len(one.result(30)) for one in (first, *others)] == [4] * 4
    assert sorted(map(len, gated.calls)) == [4, 4, 8]


@pytest.mark.parametrize(("trouble", "cause"), [("bad", "cannot be read"), ("short", "0 scores for 1 images")])
def test_one_callers_fault_is_not_anothers(served, asking, monkeypatch, trouble, cause):
    monkeypatch.setattr(http_client, "FAULTS", 1)
    gated = Gated()
    first, good, bad, better = started(served, asking, gated, 4, [["a"], ["b"], [trouble], ["c"]])
    gated.gate.release(9)
    bright = [IMAGES[0].mean()]
    assert first.result(30) == good.result(30) == better.result(30) == bright
    with pytest.raises(RewardError, match=rf"status 500.*{cause}"):
        bad.result(30)


def test_a_caller_is_told_to_come_again_when_too_many_wait(served, asking, monkeypatch):
    monkeypatch.setattr(serve, "WAIT", 0.2)
    gated = Gated()
    app = serve.application(gated)
    url = served(app)
    inside = [asking(client(url).score, IMAGES[:1], ["a"])]
    until(lambda: gated.calls)
    inside.append(asking(client(url).score, IMAGES[:1], ["a"]))
    until(lambda: waiting(app) == 1)
    body, kind = remote.as_npz(IMAGES, ["late"] * 4)
    answer = requests.post(f"{url}/score", data=body, headers={"Content-Type": kind}, timeout=10)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == str(serve.AGAIN)
    gated.gate.release(9)
    assert [one.result(30) for one in inside] == [[IMAGES[0].mean()]] * 2


def test_who_gives_up_while_waiting_is_not_scored(served, asking):
    gated = Gated()
    app = serve.application(gated)
    url = served(app)
    first = asking(client(url).score, IMAGES[:1], ["a"])
    until(lambda: gated.calls)
    with pytest.raises(RewardError, match="Timeout"):
        client(url, timeout=0.3).score(IMAGES, ["late"] * 4)
    assert waiting(app) == 1
    gated.gate.release(9)
    assert len(first.result(30)) == 1
    assert client(url).score(IMAGES[:1], ["b"]) == [IMAGES[0].mean()]
    assert gated.calls == [["a"], ["b"]] and waiting(app) == 0


def test_who_breaks_off_while_sending_leaves_room_for_others(served):
    reward = Gated()
    reward.gate.release(9)
    url = served(serve.application(reward))
    for _ in range(5):  # more than are read at a time
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as breaking:
            breaking.sendall(
                b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n" + b"{" * 9999
            )
    assert len(client(url).score(IMAGES, ["a"] * 4)) == 4


def test_many_callers_at_once_each_get_the_scores_of_their_own_images(served, asking):
    reward = Gated()
    reward.gate.release(999)
    made = client(served(serve.application(reward, together=4)))
    groups = np.random.default_rng(1).integers(0, 256, size=(36, 3, 9, 7, 3), dtype=np.uint8)
    answers = [asking(made.score, images, ["a"] * 3) for images in groups]
    for images, answer in zip(groups, answers, strict=True):
        assert answer.result(30) == images.mean(axis=(1, 2, 3)).tolist()
    assert sum(map(len, reward.calls)) == 36 * 3 and max(map(len, reward.calls)) <= 4 * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_without_a_traceback(tmp_path, number):
    (tmp_path / "mine.py").write_text(
        "class Zero:\n    def score(self, images, prompts):\n        return [0] * len(images)\n"
    )
    command = [sys.executable, serve.__file__, "mine:Zero", "--port", "0"]
    with process(command, tmp_path, stderr=subprocess.PIPE) as server:
        url = server.stdout.readline().split()[-1]
        assert client(url).score(IMAGES, ["a"] * 4) == [0.0] * 4
        server.send_signal(number)
        _, errors = server.communicate(timeout=60)
    assert errors == ""


STUCK = """
import time


class Stuck:
    def score(self, images, prompts):
        if "stuck" in prompts:
            open("begun", "w").close()
            time.sleep(3600)
        return [1.0] * len(images)
"""


@contextmanager
def process(command, folder, **streams):
    """A server's process, which is gone afterwards whatever happens."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, **streams) as server:
        try:
            yield server
        finally:
            server.kill()


def test_a_reward_that_hangs_ends_the_server_and_everyone_is_told(tmp_path, asking):
    (tmp_path / "mine.py").write_text(STUCK)
    command = [sys.executable, serve.__file__, "mine:Stuck", "--port", "0", "--timeout", "10", "--together", "2"]
    with process(command, tmp_path, stderr=subprocess.PIPE) as server:
        url = server.stdout.readline().split()[-1]
        made = client(url)
        assert made.score(IMAGES, ["a"] * 4) == [1.0] * 4
        answers = [asking(client(url).score, IMAGES, ["stuck"] * 4)]
        while not (tmp_path / "begun").exists():  # else another could be first
            assert server.poll() is None
            time.sleep(0.01)
        answers += [asking(client(url).score, IMAGES, [prompt] * 4) for prompt in ("b", "c", "d")]
        for answer in answers:
            with pytest.raises(RewardError, match=r"504.*has not come back within 10 s; this server ends"):
                answer.result(60)
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 1 and "error: mine:Stuck has not come back within 10 s:" in errors
    assert 'mine.py", line 9 in score' in errors


def test_the_clients_of_a_server_that_was_started_again_have_waited(tmp_path, asking):
    (tmp_path / "mine.py").write_text(STUCK.replace('"stuck" in prompts', "not __import__('os').path.exists('again')"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, serve.__file__, "mine:Stuck", "--port", str(port), "--timeout", "1"]
    with process(command, tmp_path, stderr=subprocess.DEVNULL) as server:
        server.stdout.readline()
        answer = asking(client(f"http://127.0.0.1:{port}", patience=120.0).score, IMAGES, ["a"] * 4)
        assert server.wait(60) == 1 and not answer.done()
    (tmp_path / "again").touch()
    with process(command, tmp_path, stderr=subprocess.DEVNULL) as server:
        assert answer.result(120) == [1.0] * 4
        server.terminate()


def test_a_reward_that_exits_is_an_error_of_its_call_alone(served, monkeypatch):
    monkeypatch.setattr(http_client, "FAULTS", 1)

    class Exits:
        def score(self, images, prompts):
            return sys.exit("no GPU") if "exit" in prompts else [1.0] * len(images)

    made = client(served(serve.application(Exits())))
    with pytest.raises(RewardError, match=r"status 500.*SystemExit: no GPU"):
        made.score(IMAGES, ["exit"] * 4)
    assert made.score(IMAGES, ["a"] * 4) == [1.0] * 4
