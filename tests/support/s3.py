"""An S3 server (moto) as a process of its own."""

import contextlib
import http.client
import http.server
import socket
import subprocess
import sys
import tempfile
import threading
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


CONDITIONS = ("if-match", "if-none-match")
FRAMING = ("content-length", "transfer-encoding", "expect", "connection")
UNKNOWN = b"<Error><Code>NotImplemented</Code><Message>A header you provided is not implemented.</Message></Error>"


@contextlib.contextmanager
def unconditional(address, *, refused):
    """A server before the one at an address that has no conditional writes: it refuses them, or does not heed them."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def passed(self):
            body = b"".join(self.chunks())
            given = self.headers.items()
            headers = {name: value for name, value in given if name.lower() not in (*CONDITIONS, *FRAMING)}
            if refused and self.command == "PUT" and any(name.lower() in CONDITIONS for name, _ in given):
                return self.answer(501, {}, UNKNOWN)
            behind = http.client.HTTPConnection(address, timeout=30)
            behind.request(self.command, self.path, body, headers)
            with contextlib.closing(behind), behind.getresponse() as answer:
                self.answer(answer.status, dict(answer.getheaders()), answer.read())

        def chunks(self):
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def answer(self, status, headers, body):
            self.send_response(status)
            length = headers.get("Content-Length", len(body)) if self.command == "HEAD" else len(body)
            left_out = ("content-length", "connection", "transfer-encoding", "date", "server")
            for name, value in headers.items():
                if name.lower() not in left_out:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    for method in ("GET", "PUT", "HEAD", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.passed)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
