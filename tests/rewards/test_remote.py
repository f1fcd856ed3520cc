"""A scorer behind real HTTP: what it says, and what is made of one that lies, hangs or breaks."""

import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from pcpo_ray import config, rewards
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import remote, serve
from pcpo_ray.scorer import Scorer
from tests import small
from tests.test_sampler import task

CPU = torch.device("cpu")
PICTURES = np.random.default_rng(0).integers(0, 256, size=(3, 9, 7, 3), dtype=np.uint8)
TEXTS = ["a", "b, with ünïcode", "c"]


class Brightness:
    """Mean brightness, plus the prompt's length; NaN for the prompt "missing"."""

    def score(self, images, prompts):
        pairs = zip(images, prompts, strict=True)
        return [float("nan") if p == "missing" else float(image.mean()) + len(p) for image, p in pairs]


class Broken:
    def score(self, images, prompts):
        raise RuntimeError("out of memory, say")


@pytest.fixture
def served():
    """Starts a server with a handler; gives its address."""
    servers = []

    def start(handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answering(*answers):
    """A handler whose POSTs give these (status, body), the last one for ever; a callable body writes by itself."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        posts = 0

        def do_GET(self):
            self.reply(200, b"{}")

        def do_POST(self):
            type(self).posts += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            if callable(body):
                body(self)
            else:
                self.reply(status, body)

        def reply(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    return Handler


def client(url, **changes):
    return rewards.load(config.Remote(kind="remote", url=url, **{"timeout": 5.0, "retries": 2, **changes}), CPU)


@pytest.mark.parametrize("format", ["json", "npz"])
def test_pictures_and_prompts_arrive_as_they_were_sent(served, format):
    url = served(serve.handler(Brightness()))
    assert client(url, format=format).score(PICTURES, TEXTS) == pytest.approx(Brightness().score(PICTURES, TEXTS))
    missing = client(url, format=format).score(PICTURES, ["a", "missing", "c"])
    assert np.isnan(missing).tolist() == [False, True, False]


def test_the_server_runs_by_itself_without_this_package(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import sys\n"
        "class Size:\n"
        "    def __init__(self, factor, name):\n"
        "        assert name == 'x' and 'torch' not in sys.modules and 'pcpo_ray' not in sys.modules\n"
        "        self.factor = factor\n"
        "    def score(self, images, prompts):\n"
        "        return [self.factor * image.shape[0] for image in images]\n"
    )
    command = [sys.executable, serve.__file__, "mine:Size", "--port", "0", "--option", "factor=2", "--option", "name=x"]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = server.stdout.readline().split()[-1]
        assert client(url).score(PICTURES, TEXTS) == [18.0] * 3
    finally:
        server.kill()
        server.wait(timeout=10)


def test_a_port_in_use_is_one_message(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Zero:\n    def score(self, images, prompts):\n        return [0] * len(images)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, serve.__file__, "mine:Zero", "--port", str(port)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: 127.0.0.1:{port} cannot be listened on: Address already in use; "
        "give another --port, or 0 for any free one\n"
    )


def test_errors_of_the_servers_are_tried_again_and_those_of_ours_are_not(served, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    good = json.dumps({"scores": [1, 2, 3]}).encode()
    assert client(served(answering((503, b"busy"), (429, b"slow"), (200, good)))).score(PICTURES, TEXTS) == [1, 2, 3]
    tired = answering((500, b"oh"))
    with pytest.raises(RewardError, match=r"failed 3 times.*status 500.*oh.*is the scorer up"):
        client(served(tired)).score(PICTURES, TEXTS)
    assert tired.posts == 3
    refused = answering((404, b"no such thing"))
    with pytest.raises(RewardError, match=r"refused: status 404"):
        client(served(refused)).score(PICTURES, TEXTS)
    assert refused.posts == 1
    with pytest.raises(RewardError, match=r"500.*RuntimeError: out of memory, say"):
        client(served(serve.handler(Broken())), retries=0).score(PICTURES, TEXTS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"scores": [1, 2]}', "2 scores for 3 pictures"),
        (b'{"scores": [1, 2, "x"]}', "ValueError"),
        (b'{"scores": 3}', "TypeError"),
        (b'{"values": [1, 2, 3]}', "KeyError"),
        (b"<html>", "answered b'<html>'"),
    ],
)
def test_an_answer_that_lies_is_never_used(served, answer, words):
    with pytest.raises(RewardError, match=words):
        client(served(answering((200, answer)))).score(PICTURES, TEXTS)


def hang(handler):
    time.sleep(3)


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("behaviour", [hang, drip])
def test_a_scorer_that_hangs_is_left_after_its_deadline(served, behaviour):
    reward = client(served(answering((200, behaviour))), timeout=0.5, retries=0)
    started = time.monotonic()
    with pytest.raises(RewardError, match="failed 1 times"):
        reward.score(PICTURES, TEXTS)
    assert time.monotonic() - started < 3


def test_one_that_is_not_there_is_found_when_the_scorer_starts():
    with pytest.raises(RewardError, match=r"127\.0\.0\.1:9/health failed 1 times.*is the scorer up"):
        client("http://127.0.0.1:9", retries=0)


def test_its_failures_are_missing_scores_with_their_cause(served, small_sd):
    url = served(answering((200, b'{"scores": [1, null, 3, 4]}'), (200, b'{"scores": []}')))
    run = small.run(small_sd, rewards=f"[{{kind: remote, url: '{url}', label: mine}}]")
    scorer = Scorer(run, CPU)
    scores, failures, _ = scorer.score(task(), np.repeat(PICTURES[:1], 4, axis=0))
    assert np.isnan(scores["mine"]).tolist() == [False, True, False, False] and "no numbers" in failures["mine"]
    scores, failures, _ = scorer.score(task(), np.repeat(PICTURES[:1], 4, axis=0))
    assert np.isnan(scores["mine"]).all() and "0 scores for 4 pictures" in failures["mine"]


@pytest.mark.parametrize(
    ("kind", "body"), [("application/json", b"{"), ("application/x-npz", b"PK"), ("text/plain", b"hello")]
)
def test_the_server_says_what_is_wrong_with_a_request(served, kind, body):
    import requests

    url = served(serve.handler(Brightness()))
    answer = requests.post(f"{url}/score", data=body, headers={"Content-Type": kind}, timeout=10)
    assert answer.status_code == 400 and answer.json()["error"]
    assert requests.get(f"{url}/else", timeout=10).status_code == 404
