"""An address without a cluster is an error within seconds, and nothing is started."""

import socket
import threading

import psutil
import pytest
from ray._private import services

from pcpo_ray.cluster.control import attach as attaching
from pcpo_ray.cluster.control.attach import attach
from pcpo_ray.errors import ClusterError


@pytest.fixture(autouse=True)
def no_trace(monkeypatch):
    """No authentication, and no child process after it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("no.such.host.example:6379", "no.such.host.example"),
        ("nonsense", "nonsense"),
        ("ray://127.0.0.1:10001", "ray://127.0.0.1:10001"),
        ("local", "'local' is no cluster that is there"),
    ],
)
def test_an_address_without_a_cluster_is_an_error_that_says_what_to_give(address, words):
    with pytest.raises(ClusterError, match=words) as error:
        attach(address)
    assert "`ray start --head`" in str(error.value)


def test_a_port_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(attaching, "ANSWER", 1.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        threading.Thread(target=lambda: mute.accept(), daemon=True).start()
        with pytest.raises(ClusterError, match="no Ray cluster at"):
            attach(f"127.0.0.1:{mute.getsockname()[1]}")


def test_no_choice_is_made_among_several_clusters_on_this_machine(monkeypatch):
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {"10.0.0.1:2", "10.0.0.1:1"})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=r"^2 Ray clusters run .* at 10.0.0.1:1, 10.0.0.1:2; name one of them with"):
        attach("auto")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # which names one
    with pytest.raises(ClusterError, match=r"no Ray cluster at .*:1: failed"):
        attach("auto")


def test_an_environment_that_asks_for_a_new_cluster_is_no_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ClusterError, match="'local' is no cluster that is there"):
        attach("auto")


def test_a_proxy_is_asked_for_as_little_as_ray_itself_asks_it(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("", 0)) as mute:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setattr(attaching, "ANSWER", 1.0)
        with pytest.raises(ClusterError, match="no Ray cluster at"):
            attach(f"127.0.0.1:{mute.getsockname()[1]}")
        mute.settimeout(5)
        mute.accept()[0].close()  # which was asked itself
        proxy.settimeout(0.1)
        with pytest.raises(TimeoutError):
            proxy.accept()
