"""An S3 server (moto) as a process of its own."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid

START = 90.0
"""Seconds until it must answer."""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ask(address, path, data=None, method="GET"):
    headers = {"Content-Type": "text/plain"}  # of what claims to be a form, moto sees no body
    request = urllib.request.Request(f"http://{address}{path}", data and data.encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@contextlib.contextmanager
def served():
    """Its address, host:port."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", address.partition(":")[2]]
    with tempfile.TemporaryFile() as log:  # a pipe would fill up, and the server wait
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _await(address, process, log)
            yield address
        finally:
            process.kill()
            process.wait(timeout=30)


def _await(address, process, log):
    deadline = time.monotonic() + START
    while True:
        with contextlib.suppress(OSError):
            ask(address, "/moto-api/")
            return
        if process.poll() is not None:
            log.seek(0)
            raise AssertionError(log.read().decode())
        assert time.monotonic() < deadline, f"moto did not answer in {START:g} s"
        time.sleep(0.2)


def bucket(address):
    """The URL of a new bucket."""
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    ask(address, f"/{name}", method="PUT")
    return f"s3://{name}"


def options(address):
    """What says where the server is, for the end of a URL."""
    return f"?scheme=http&endpoint_override={address}"


@contextlib.contextmanager
def guarded(address):
    """It refuses keys that it does not know, which are all."""
    ask(address, "/moto-api/reset-auth", "0", "POST")
    try:
        yield
    finally:
        ask(address, "/moto-api/reset-auth", "1000000000", "POST")
