"""A scorer behind real HTTP: what it says, and what is made of one that lies, hangs or breaks."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from pcpo_ray import config, rewards
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import http_client, serve
from pcpo_ray.workers.scorer import Scorer
from tests.support import small
from tests.support.trajectories import task

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, size=(3, 9, 7, 3), dtype=np.uint8)
TEXTS = ["a", "b, with ünïcode", "c"]


class Brightness:
    """Mean brightness, plus the prompt's length; NaN for the prompt "missing"."""

    def score(self, images, prompts):
        pairs = zip(images, prompts, strict=True)
        return [float("nan") if p == "missing" else float(image.mean()) + len(p) for image, p in pairs]


class Broken:
    def score(self, images, prompts):
        raise RuntimeError("out of memory, say")


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
    return rewards.load(config.Remote(kind="remote", url=url, **{"timeout": 5.0, "patience": 3.0, **changes}), CPU)


@pytest.mark.parametrize("format", ["json", "npz"])
def test_images_and_prompts_arrive_as_they_were_sent(served, format):
    url = served(serve.application(Brightness()))
    assert client(url, format=format).score(IMAGES, TEXTS) == pytest.approx(Brightness().score(IMAGES, TEXTS))
    missing = client(url, format=format).score(IMAGES, ["a", "missing", "c"])
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
        assert client(url).score(IMAGES, TEXTS) == [18.0] * 3
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
        f"error: Address already in use (while attempting to bind on address ('127.0.0.1', {port})); "
        "give another --port, or 0 for any free one\n"
    )


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE", 0.01)


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"scores": [')


GOOD = json.dumps({"scores": [1, 2, 3]}).encode()


def test_a_server_that_is_away_for_a_while_is_waited_for(served, hasty):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    reward = client(f"http://127.0.0.1:{port}", patience=60)  # it is there, though the server is not yet
    threading.Timer(1.5, served, (answering((200, GOOD)), port)).start()
    started = time.monotonic()
    assert reward.score(IMAGES, TEXTS) == [1, 2, 3]
    assert 1 < time.monotonic() - started < 30


@pytest.mark.parametrize(
    "trouble",
    [(502, b""), (503, b"busy"), (504, b""), (429, b"slow"), (521, b"down"), (529, b"overloaded"), (200, cut)],
)
def test_what_passes_is_asked_again(served, hasty, trouble):
    server = answering(trouble, trouble, trouble, (200, GOOD))
    assert client(served(server)).score(IMAGES, TEXTS) == [1, 2, 3]
    assert server.posts == 4


def test_its_patience_ends_and_counts_from_the_first_failure(served, hasty):
    tired = answering((503, b"busy"))
    reward = client(served(tired), patience=0.5)
    with pytest.raises(RewardError, match=r"failed \d+ times, in \d s \(patience 0.5\).*status 503.*is the scorer up"):
        reward.score(IMAGES, TEXTS)
    before = tired.posts
    time.sleep(0.6)
    with pytest.raises(RewardError, match="failed 1 times"):  # the next groups do not wait as long again
        reward.score(IMAGES, TEXTS)
    assert before > 2 and tired.posts == before + 1


def test_a_time_to_come_again_is_kept(served, hasty):
    def later(handler):
        handler.send_response(429)
        handler.send_header("Retry-After", "1")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    started = time.monotonic()
    assert client(served(answering((429, later), (200, GOOD)))).score(IMAGES, TEXTS) == [1, 2, 3]
    assert time.monotonic() - started > 1
    assert http_client._retry_after("Wed, 21 Oct 2015 07:28:00 GMT", "") == 0 == http_client._retry_after("soon", "")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 302])
def test_what_no_later_attempt_could_mend_is_an_error_at_once(served, hasty, status):
    refused = answering((status, b"no such thing"))
    with pytest.raises(RewardError, match=rf"refused: status {status}"):
        client(served(refused)).score(IMAGES, TEXTS)
    assert refused.posts == 1


def test_a_reward_that_fails_is_asked_a_few_times(served, hasty):
    broken = Broken()
    with pytest.raises(RewardError, match=r"failed 3 times.*500.*RuntimeError: out of memory, say"):
        client(served(serve.application(broken)), patience=60).score(IMAGES, TEXTS)


def test_a_token_that_may_stand_in_a_number_changes_no_score(served, hasty, monkeypatch):
    free = client(served(serve.application(Brightness(), token=None))).score(IMAGES, TEXTS)
    monkeypatch.setenv("JUDGE", "0")
    assert np.array_equal(
        client(served(serve.application(Brightness(), token="0")), token="JUDGE").score(IMAGES, TEXTS), free
    )


def test_a_token_is_sent_and_stands_in_no_config_and_no_message(served, hasty, monkeypatch):
    url = served(serve.application(Brightness(), token="very secret"))
    with pytest.raises(RewardError, match=r"status 401.*name the environment variable that holds it in `token`"):
        client(url)
    with pytest.raises(RewardError, match="environment variable JUDGE, which is not set where the scorer runs"):
        client(url, token="JUDGE")
    monkeypatch.setenv("JUDGE", "wrong secret")
    with pytest.raises(RewardError, match="the token in JUDGE is not the one that it wants") as caught:
        client(url, token="JUDGE")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("JUDGE", "very secret")
    monkeypatch.setenv("NETRC", "/dev/null")
    assert len(client(url, token="JUDGE").score(IMAGES, TEXTS)) == 3


def test_a_proxy_is_not_asked_for_what_runs_on_this_machine(served, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert len(client(served(serve.application(Brightness()))).score(IMAGES, TEXTS)) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"scores": [1, 2]}', "2 scores for 3 images"),
        (b'{"scores": [1, 2, "x"]}', "TypeError: a score is the str 'x'; expected a number, or null"),
        (b'{"scores": [1, 2, "3"]}', "TypeError: a score is the str '3'"),
        (b'{"scores": [[1], [2], [3]]}', r"TypeError: a score is the list \[1\]"),
        (b'{"scores": "123"}', "TypeError: scores are a str; expected a list"),
        (b'{"scores": {"1": 0, "2": 0, "3": 0}}', "TypeError: scores are a dict; expected a list"),
        (b'{"scores": [1, 2, 1' + b"0" * 400 + b"]}", "OverflowError"),
        (b"null", "TypeError"),
        (b'{"scores": 3}', "TypeError"),
        (b'{"values": [1, 2, 3]}', "KeyError"),
        (b"<html>", "answered b'<html>'"),
    ],
)
def test_an_answer_that_lies_is_never_used(served, answer, words):
    with pytest.raises(RewardError, match=words):
        client(served(answering((200, answer)))).score(IMAGES, TEXTS)


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
    reward = client(served(answering((200, behaviour))), timeout=0.5, patience=0)
    started = time.monotonic()
    with pytest.raises(RewardError, match="failed 1 times"):
        reward.score(IMAGES, TEXTS)
    assert time.monotonic() - started < 3


def test_its_failures_are_missing_scores_with_their_cause(served, small_sd):
    url = served(answering((200, b'{"scores": [1, null, 3, 4]}'), (200, b'{"scores": []}')))
    run = small.run(small_sd, rewards=f"[{{kind: remote, url: '{url}', label: mine}}]")
    scorer = Scorer(run, CPU)
    scores, failures, _ = scorer.score(task(), np.repeat(IMAGES[:1], 4, axis=0))
    assert np.isnan(scores["mine"]).tolist() == [False, True, False, False] and "not finite" in failures["mine"]
    scores, failures, _ = scorer.score(task(), np.repeat(IMAGES[:1], 4, axis=0))
    assert np.isnan(scores["mine"]).all() and "0 scores for 4 images" in failures["mine"]


@pytest.mark.parametrize(
    ("kind", "body"), [("application/json", b"{"), ("application/x-npz", b"PK"), ("text/plain", b"hello")]
)
def test_the_server_says_what_is_wrong_with_a_request(served, kind, body):
    url = served(serve.application(Brightness()))
    answer = requests.post(f"{url}/score", data=body, headers={"Content-Type": kind}, timeout=10)
    assert answer.status_code == 400 and answer.json()["error"]
    assert requests.get(f"{url}/else", timeout=10).status_code == 404


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def black(side):
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def lying():
    """An .npz of little whose header promises a terabyte."""
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, dtype in (("images", "|u1"), ("prompts", "<U1")):
            with made.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array_header_1_0(
                    entry, {"descr": dtype, "fortran_order": False, "shape": (1 << 40,)}
                )
    return file.getvalue()


BOMBS = {
    "zeros in an npz": ("npz", 413, lambda: npz(images=np.zeros((20, 1000, 1000, 3), np.uint8), prompts=TEXTS)),
    "long prompts": ("npz", 413, lambda: npz(images=IMAGES, prompts=np.array(["a" * 20_000_000]))),
    "a lying header": ("npz", 400, lying),
    "another array": ("npz", 400, lambda: npz(images=IMAGES, prompts=TEXTS, more=IMAGES)),
    "a large type": ("npz", 400, lambda: npz(images=IMAGES.astype(float), prompts=TEXTS)),
    "pickled prompts": ("npz", 400, lambda: npz(images=IMAGES, prompts=np.array([{}], dtype=object))),
    "a large PNG": ("json", 413, lambda: json.dumps({"prompts": ["a"], "images": [black(3000)]}).encode()),
    "many PNGs": ("json", 413, lambda: json.dumps({"prompts": ["a"] * 20, "images": [black(1000)] * 20}).encode()),
    "a deep JSON": ("json", 400, lambda: b"[" * 100_000),
    "a large body": ("json", 413, lambda: b" " * (17 << 20)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_would_fill_the_servers_memory_is_refused_before_it_does(served, bomb, monkeypatch):
    format, status, made = BOMBS[bomb]
    url = served(serve.application(Brightness(), largest=16 << 20))
    headers = {"Content-Type": f"application/{'x-npz' if format == 'npz' else 'json'}"}
    answer = requests.post(f"{url}/score", data=made(), headers=headers, timeout=30)
    assert answer.status_code == status and "Traceback" not in answer.text
    assert client(url).score(IMAGES, TEXTS)  # and it goes on


def test_who_sends_slowly_or_holds_connections_keeps_nobody_out(served, hasty, monkeypatch):
    monkeypatch.setattr(serve, "ARRIVE", 0.5)
    monkeypatch.setattr(serve, "CONNECTIONS", 4)
    url = served(serve.application(Brightness()))
    port = int(url.rpartition(":")[2])
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
    held[0].sendall(b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
    assert len(client(url, patience=30).score(IMAGES, TEXTS)) == 3
    for one in held:
        one.close()


@pytest.mark.parametrize("length", ["-1", "abc", "0", ""])
def test_a_length_that_is_none_is_refused(served, length):
    port = int(served(serve.application(Brightness())).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as asking:
        asking.sendall(
            f"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        assert asking.recv(100).split()[1] == b"400"


def test_other_machines_are_served_with_a_token_only(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Zero:\n    def score(self, images, prompts):\n        return [0] * len(images)\n"
    )
    command = [sys.executable, serve.__file__, "mine:Zero", "--port", "0", "--host", "0.0.0.0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and done.stderr.startswith(
        "error: whoever reaches 0.0.0.0:0 could use this server; set "
    )
    env = {**os.environ, serve.TOKEN: "secret"}
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as it:
        try:
            url = it.stdout.readline().split()[-1].replace("0.0.0.0", "127.0.0.1")
            assert requests.get(f"{url}/health", timeout=10).status_code == 401
            headers = {"Authorization": "Bearer secret"}
            assert requests.get(f"{url}/health", headers=headers, timeout=10).status_code == 200
        finally:
            it.kill()


def test_a_failure_counts_whatever_attempts_there_were_before(served, hasty):
    """A server that was away, then fails once while it loads, is asked again."""
    away, failed, scores = (503, b"busy"), (500, b"loading"), (200, b'{"scores": [1, 2, 3]}')
    assert client(served(answering(away, away, failed, scores)), patience=30).score(IMAGES, TEXTS) == [1, 2, 3]


def test_a_balancer_that_hangs_up_is_a_server_that_is_away():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(http_client.AwayError, match="SSLError"):
            http_client.Client(url, timeout=5, patience=1).once("POST", "/score", b"", "application/json")


@pytest.mark.parametrize("text", ["secret-token-123\n", "  secret-token-123 "])
def test_a_token_from_a_file_is_sent_without_its_newline(served, monkeypatch, text):
    monkeypatch.setenv("KEY", text)
    seen = []

    def noting(handler):
        seen.append(handler.headers["Authorization"])
        handler.reply(200, GOOD)

    assert client(served(answering((200, noting))), token="KEY").score(IMAGES, TEXTS) == [1, 2, 3]
    assert seen == ["Bearer secret-token-123"]


@pytest.mark.parametrize("text", ["a-secret\nmore", "a-secret-ü"])
def test_a_token_that_no_header_can_hold_is_named_and_not_shown(monkeypatch, text):
    monkeypatch.setenv("KEY", text)
    with pytest.raises(RewardError, match="the token in KEY can be in no header") as found:
        http_client.Client("http://127.0.0.1:1", timeout=1, patience=1, token="KEY")
    assert "a-secret" not in str(found.value)


def test_a_time_to_come_again_is_counted_by_the_servers_clock():
    again = http_client._retry_after("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT")
    assert again == 30.0 and http_client._retry_after("²", "") == 0.0 and http_client._retry_after("7", "") == 7.0


def test_before_a_run_a_server_is_waited_for_within_its_start(served, hasty, small_sd):
    url = served(answering((503, b"busy")))
    run = small.run(small_sd, rewards=f"[{{kind: remote, url: '{url}', patience: 900}}]")
    scorer = Scorer(run, CPU)
    with pytest.raises(RewardError, match=r"failed \d+ times, in \d s \(patience 0\.5\)"):
        scorer.ask(["a", "b"], 0.5)
    assert scorer.rewards["remote"].patience == 900
