"""A run in one process can be scraped: on loopback, at a port of its own, until it ends."""

import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from pcpo_ray.commands import session
from pcpo_ray.config import files
from pcpo_ray.errors import RunError
from pcpo_ray.metrics.changes import change
from pcpo_ray.metrics.prometheus import Endpoint
from pcpo_ray.metrics.reporter import NoReporter
from tests.support import small
from tests.support.scraping import scraped


@pytest.fixture
def endpoint():
    made = Endpoint(0)
    yield made
    made.close()


def test_counters_add_up_and_gauges_are_replaced(endpoint):
    for value in (1.0, 2.5):
        endpoint.apply("r", [change("loss", value), change("samples", value, purpose="train")])
    endpoint.apply("other", [change("loss", 9.0)])
    assert sorted(scraped(endpoint.port), key=str) == [
        ("ray_pcpo_loss", {"run": "other"}, 9.0),
        ("ray_pcpo_loss", {"run": "r"}, 2.5),
        ("ray_pcpo_samples_total", {"run": "r", "purpose": "train"}, 3.5),
    ]


def test_a_gauge_that_is_no_number_has_no_value_any_more(endpoint):
    endpoint.apply("r", [change("reward", 1.0, reward="a"), change("reward", 1.0, reward="b")])
    endpoint.apply("r", [change("reward", float("nan"), reward="a")])
    assert scraped(endpoint.port) == [("ray_pcpo_reward", {"run": "r", "reward": "b"}, 1.0)]


def test_a_label_may_hold_anything(endpoint):
    name = 'a "quoted"\\reward\nof two lines'
    endpoint.apply("r", [change("reward", 1.0, reward=name)])
    assert scraped(endpoint.port) == [("ray_pcpo_reward", {"run": "r", "reward": name}, 1.0)]


def test_scraping_while_it_changes_gives_whole_answers(endpoint):
    done = threading.Event()

    def write():
        number = 0
        while not done.is_set():
            number += 1
            endpoint.apply("r", [change("reward", number, reward=str(number % 200))])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(scraped(endpoint.port) for _ in range(20))
    finally:
        done.set()
        thread.join()


def test_nobody_beyond_this_machine_can_reach_it(endpoint):
    assert endpoint._server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do(endpoint):
    with pytest.raises(RunError, match=rf"--metrics-port {endpoint.port} cannot be had.*in use; give another, or 0"):
        Endpoint(endpoint.port)


def test_a_closed_port_is_free_again():
    first = Endpoint(0)
    first.close()
    with pytest.raises(urllib.error.URLError):
        scraped(first.port)
    Endpoint(first.port).close()


def test_closing_waits_for_the_next_look_of_one_who_looks_again_and_again(endpoint):
    for _ in range(2):
        scraped(endpoint.port)
        time.sleep(0.3)
    endpoint.apply("r", [change("runs_ended", 1, driver="d", how="finished")])
    closing = threading.Thread(target=endpoint.close)
    closing.start()
    assert [name for name, _, _ in scraped(endpoint.port)] == ["ray_pcpo_runs_ended_total"]
    closing.join(timeout=60)
    assert not closing.is_alive()


def test_closing_waits_until_an_answer_under_way_has_been_read(endpoint):
    for number in range(20):  # 20 MB, more than a socket's buffers hold
        endpoint.apply("r", [change("reward", number, reward=f"{number}{'x' * 1_000_000}")])
    with socket.create_connection(("127.0.0.1", endpoint.port)) as reader:
        reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        found = reader.recv(1)
        closing = threading.Thread(target=endpoint.close)
        closing.start()
        closing.join(timeout=1)
        assert closing.is_alive()
        while more := reader.recv(1 << 16):
            found += more
        closing.join(timeout=60)
    assert not closing.is_alive() and found.count(b"\nray_pcpo_reward{") == 20


def test_closing_waits_for_nobody_who_has_looked_once_or_looks_no_more(monkeypatch):
    monkeypatch.setattr("pcpo_ray.metrics.prometheus.LAST_LOOK", 600.0)
    for looks in (0, 1):
        made = Endpoint(0)
        for _ in range(looks):
            scraped(made.port)
        made.close()
    made = Endpoint(0)
    made._looked = (time.monotonic() - 200, time.monotonic() - 100)
    assert 0 < made._until_next_look() <= 50
    made._looked = (time.monotonic() - 400, time.monotonic() - 300)
    assert made._until_next_look() == 0.0
    made.close()


def test_a_run_tells_nobody_unless_it_is_asked_to(small_sd):
    run = small.run(small_sd)
    assert isinstance(session.meter(run, local=True, port=None, say=pytest.fail), NoReporter)
    with pytest.raises(RunError, match="--metrics-port 9400 is for --local"):
        session.meter(run, local=False, port=9400, say=pytest.fail)
    said = []
    metered = session.meter(run, local=True, port=0, say=said.append)
    try:
        assert said == [f"metrics: http://127.0.0.1:{metered.exporter.port}/metrics"]  # type: ignore[attr-defined]
    finally:
        metered.close()


def command(path, folder, port):
    return [sys.executable, "-m", "pcpo_ray.commands.app", "train", str(path), "--local", "--runs", str(folder),
            "--metrics-port", str(port)]  # fmt: skip


def test_the_command_serves_its_run_while_it_goes_on(small_sd, tmp_path):
    run = small.run(small_sd, name="served", steps=1000)
    path = tmp_path / "served.yaml"
    path.write_text(files.dump(run))
    job = subprocess.Popen(
        command(path, tmp_path, 0), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    try:
        line = next(line for line in job.stdout if "metrics: http://127.0.0.1:" in line)
        port = int(line.rpartition(":")[2].split("/")[0])
        deadline = time.monotonic() + 250
        while "ray_pcpo_loss" not in {name for name, _, _ in scraped(port)}:
            assert time.monotonic() < deadline, "no step was told in 250 s"
            time.sleep(0.2)
    finally:
        job.terminate()
        job.communicate(timeout=60)
    with pytest.raises(urllib.error.URLError):
        scraped(port)


@pytest.mark.chaos
def test_the_command_leaves_nothing_behind_where_the_port_is_taken(small_sd, tmp_path):
    path = tmp_path / "refused.yaml"
    path.write_text(files.dump(small.run(small_sd, name="refused")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(command(path, tmp_path / "runs", port), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and f"error: --metrics-port {port} cannot be had on 127.0.0.1" in done.stderr
    assert not (tmp_path / "runs" / "refused").exists()
