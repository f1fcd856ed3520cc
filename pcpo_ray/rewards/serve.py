"""Serve a reward over HTTP, from an environment of its own; `remote.py` is the other end.

    python serve.py package.module:Class --port 8100 --option name=value

This file needs only numpy and Pillow and nothing of pcpo_ray, so that it runs where the reward's library requires
versions that pcpo_ray cannot use (ImageReward: transformers before 4.56). The class has a method
score(images, prompts), with images as (N, H, W, 3) bytes.

If the environment variable REWARD_TOKEN is set, clients must send it as their token. Listening on any address but this
machine's own requires it.
"""

import argparse
import base64
import contextlib
import hmac
import io
import ipaddress
import json
import math
import os
import pkgutil
import socket
import sys
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

TOKEN = "REWARD_TOKEN"
LARGEST = 512 << 20
"""The largest size in bytes of a request, and of its images when decoded."""

CONNECTIONS = 64
"""The most connections at a time; further clients get no answer and retry."""

BODIES = 2
"""The most requests in memory at a time: one is scored while the next arrives."""

ARRIVE = 60.0
"""Seconds within which a request must have arrived."""

WAIT = 30.0
"""Seconds that a request may wait for its turn; then the client is told to retry after `AGAIN` seconds."""

AGAIN = 5


class TooLargeError(ValueError):
    """A request whose images would take more memory than allowed."""


def read_json(body: bytes, largest: int = LARGEST) -> tuple[np.ndarray, list[str]]:
    from PIL import Image

    found = json.loads(body)
    opened = []
    for text in found["images"]:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])  # its header alone
        opened.append(picture)
        largest -= 3 * picture.width * picture.height
        if largest < 0:
            raise TooLargeError
    return np.stack([np.asarray(picture.convert("RGB")) for picture in opened]), list(found["prompts"])


def read_npz(body: bytes, largest: int = LARGEST) -> tuple[np.ndarray, list[str]]:
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(body)) as found:
        members = {entry.filename: entry for entry in found.infolist()}
        if sorted(members) != ["images.npy", "prompts.npy"] or len(found.infolist()) != 2:
            raise ValueError(f"got {sorted(members)[:5]}; expected images.npy and prompts.npy")
        if sum(entry.file_size for entry in members.values()) > largest:  # no more than that is ever decompressed
            raise TooLargeError
        for name, kind in (("images.npy", "u"), ("prompts.npy", "U")):
            with found.open(members[name]) as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"{name} is of .npy version {version}; expected (1, 0)")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype.kind != kind or (kind == "u" and dtype.itemsize != 1):
                    raise ValueError(f"{name} is of type {dtype}; expected uint8 images and prompts of text")
                if math.prod(shape) * dtype.itemsize > members[name].file_size:
                    raise ValueError(f"{name} says that it has the shape {shape}, and is cut short")
            with found.open(members[name]) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays["images.npy"], [str(prompt) for prompt in arrays["prompts.npy"]]


READERS: dict[str, Callable[[bytes, int], tuple[np.ndarray, list[str]]]] = {
    "application/json": read_json,
    "application/x-npz": read_npz,
}


def handler(reward: Any, *, token: str | None = None, largest: int = LARGEST) -> type[BaseHTTPRequestHandler]:
    """Make a handler class that answers for one reward, one request at a time."""
    lock, bodies = threading.Lock(), threading.BoundedSemaphore(BODIES)

    class Handler(BaseHTTPRequestHandler):
        timeout = ARRIVE
        unread = 0

        def handle(self) -> None:
            self.arriving = threading.Timer(ARRIVE, self._too_slow)  # a client that drips bytes would never time out
            self.arriving.daemon = True
            self.arriving.start()
            try:
                with contextlib.suppress(OSError):  # the client has gone
                    super().handle()
            finally:
                self.arriving.cancel()

        def do_GET(self) -> None:
            if self._known():
                found = self.path == "/health"
                self._answer(200 if found else 404, {"status": "ready"} if found else {"error": "expected GET /health"})

        def do_POST(self) -> None:
            reader = READERS.get(self.headers.get("Content-Type", ""))
            length = self.headers.get("Content-Length", "")
            self.unread = int(length) if length.isdigit() else 0
            if not self._known():
                return
            if self.path != "/score" or reader is None or not length.isdigit() or int(length) == 0:
                self._answer(400, {"error": f"expected POST /score with a Content-Length, of {list(READERS)}"})
            elif int(length) > largest:
                self._too_large()
            elif not bodies.acquire(timeout=WAIT):
                self._answer(503, {"error": "others are before this one"}, {"Retry-After": str(AGAIN)})
            else:
                try:
                    self._score(reader, int(length))
                finally:
                    bodies.release()

        def _score(self, reader: Callable[[bytes, int], tuple[np.ndarray, list[str]]], length: int) -> None:
            body, self.unread = self.rfile.read(length), 0
            self.arriving.cancel()
            try:
                images, prompts = reader(body, largest)
                if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) != len(prompts):
                    raise ValueError(
                        f"images of shape {images.shape} and {len(prompts)} prompts; expected (N, H, W, 3)"
                    )
            except TooLargeError:
                return self._too_large()
            except Exception as error:  # a malformed body is the sender's fault, whatever it makes the reader raise
                return self._answer(400, {"error": _told(error)})
            del body
            try:
                with lock:
                    scores = [float(score) for score in reward.score(images, prompts)]
            except Exception as error:  # the sender retries and counts it
                return self._answer(500, {"error": _told(error)})
            return self._answer(200, {"scores": [score if math.isfinite(score) else None for score in scores]})

        def _known(self) -> bool:
            """Check the sender's token, and refuse the request if it is wrong."""
            given = self.headers.get("Authorization", "")
            if token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return True
            self._answer(401, {"error": "expected the header Authorization: Bearer TOKEN"})
            return False

        def _too_large(self) -> None:
            self._answer(
                413,
                {
                    "error": f"more than {largest >> 20} MiB of a request, or of its images; serve with a higher "
                    "--largest, or send fewer at once"
                },
            )

        def _too_slow(self) -> None:
            with contextlib.suppress(OSError):  # it has gone
                self.connection.shutdown(socket.SHUT_RDWR)

        def _answer(self, status: int, found: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            body = json.dumps(found).encode()
            self.close_connection = True
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            while self.unread > 0 and (rest := self.rfile.read(min(1 << 20, self.unread))):
                self.unread -= len(rest)  # a client that is cut off while sending would not see the answer

    return Handler


def _told(error: Exception) -> str:
    """Return the last line of a traceback, which reveals no more of this machine."""
    return f"{type(error).__name__}: {error}"[:500]


class Server(ThreadingHTTPServer):
    """A server with a thread for each of at most `CONNECTIONS` connections."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handling: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, handling)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()


def of_this_machine(host: str) -> bool:
    """Return True if an address can be reached only from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a reward over HTTP.")
    parser.add_argument("reward", help="package.module:Class")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--largest", type=int, default=LARGEST >> 20, help="MiB of a request, and of its images")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="for the class; JSON")
    arguments = parser.parse_args()
    token = os.environ.pop(TOKEN, "") or None
    if token is None and not of_this_machine(arguments.host):
        sys.exit(
            f"error: whoever reaches {arguments.host}:{arguments.port} could use this server; set {TOKEN} here and "
            "where it is asked from, or leave out --host"
        )
    sys.path.insert(0, "")
    options = {}
    for text in arguments.option:
        name, _, value = text.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:  # a plain word stands for itself
            options[name] = value
    reward = pkgutil.resolve_name(arguments.reward)(**options)
    try:
        server = Server((arguments.host, arguments.port), handler(reward, token=token, largest=arguments.largest << 20))
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        sys.exit(f"error: {where} cannot be listened on: {error.strerror}; give another --port, or 0 for any free one")
    with server:
        print(f"{arguments.reward} on http://{arguments.host}:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
