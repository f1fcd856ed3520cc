"""Serve a reward over HTTP, from an environment of its own; `remote.py` is the other end.

    pip install fastapi uvicorn numpy pillow
    python serve.py package.module:Class --port 8100 --option name=value

This file needs only these and nothing of pcpo_ray, so that it runs where the reward's library requires versions that
pcpo_ray cannot use (ImageReward: transformers before 4.56). The class has a method score(images, prompts), or
score_group(images, prompt) if it compares the images of a group, with images as (N, H, W, 3) bytes. Its methods are
always called from one thread. A call that takes longer than --timeout ends the server with status 1, as no thread can
be stopped: have whatever starts it start it again. Clients retry meanwhile.

If the environment variable REWARD_TOKEN is set, clients must send it as their token. Listening on any address but this
machine's own requires it.
"""

import argparse
import asyncio
import base64
import contextlib
import faulthandler
import hmac
import io
import ipaddress
import json
import math
import os
import pkgutil
import socket
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

TOKEN = "REWARD_TOKEN"
LARGEST = 512 << 20
"""The largest size in bytes of a request, and of its images when decoded."""

CONNECTIONS = 64
"""The most connections at a time; further clients are told to retry."""

ARRIVE = 60.0
"""Seconds within which a request must have arrived."""

WAIT = 30.0
"""Seconds that a request may wait for its turn; then the client is told to retry after `AGAIN` seconds."""

AGAIN = 5

LONGEST = 600.0
"""Seconds that one call of the reward may take; after them it counts as hanging."""


class TooLargeError(ValueError):
    """A request whose images would take more memory than allowed."""


def read_json(body: bytes, largest: int = LARGEST) -> tuple[np.ndarray, list[str]]:
    from PIL import Image

    found = json.loads(body)
    opened = []
    for text in found["images"]:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])  # its header alone
        opened.append(image)
        largest -= 3 * image.width * image.height
        if largest < 0:
            raise TooLargeError
    return np.stack([np.asarray(image.convert("RGB")) for image in opened]), list(found["prompts"])


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
                file.seek(0)
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays["images.npy"], [str(prompt) for prompt in arrays["prompts.npy"]]


READERS: dict[str, Callable[[bytes, int], tuple[np.ndarray, list[str]]]] = {
    "application/json": read_json,
    "application/x-npz": read_npz,
}


class RefusedError(Exception):
    """A request that gets an error as its answer."""

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.headers = status, headers or {}


@dataclass(eq=False)
class Work:
    """A request's images and prompts, and its scores once they are there."""

    images: np.ndarray
    prompts: list[str]
    request: Request
    scores: "asyncio.Future[list[float]]"


class Turns:
    """Calls of the reward, one at a time, in one thread: of one request each, or of up to `together`.

    Requests of several callers are put together if their images have one size, and only if all are of `score`. After a
    call that takes longer than `longest` seconds there are no others: `hung` is called, and everyone is told.
    """

    def __init__(self, reward: Any, together: int = 1, longest: float = LONGEST) -> None:
        self.method = "score" if hasattr(reward, "score") else "score_group"
        self.reward, self.together, self.longest, self.hangs = reward, together, longest, False
        self.hung: Callable[[], None] = lambda: None
        self.waiting: list[Work] = []
        self.turn = asyncio.Lock()
        self.thread = ThreadPoolExecutor(1)

    async def scores(self, work: Work) -> list[float]:
        """Score a request's images when it is their turn. Raises RefusedError, also for what the reward does."""
        self.waiting.append(work)
        async with self.turn:
            if not work.scores.done():
                await self._call([one for one in self._next(work) if not await one.request.is_disconnected()])
        if self.hangs and not work.scores.done():
            problem = f"the reward has not come back within {self.longest:g} s; this server ends"
            raise RefusedError(504, problem, {"Retry-After": str(AGAIN)})
        return work.scores.result() if work.scores.done() else []  # its client has gone, and reads no answer

    def _next(self, work: Work) -> list[Work]:
        """Take a request out of those that wait, and with it others that can be scored in the same call."""
        fits = [one for one in self.waiting if one is not work and one.images.shape[1:] == work.images.shape[1:]]
        found = [work, *fits[: self.together - 1]] if self.method == "score" else [work]
        self.waiting = [one for one in self.waiting if one not in found]
        return found

    async def _call(self, works: list[Work]) -> None:
        if not works or self.hangs:
            return
        call = asyncio.get_running_loop().run_in_executor(self.thread, self._scored, works)
        await asyncio.wait([call], timeout=self.longest)
        if not call.done():
            self.hangs = True
            self.hung()
        elif (error := call.exception()) is None:
            scores = call.result()
            for work in works:
                work.scores.set_result(scores[: len(work.images)])
                del scores[: len(work.images)]
        elif len(works) == 1:  # a reward may raise anything, sys.exit too; the sender retries and counts it
            works[0].scores.set_exception(RefusedError(500, _told(error)))
        else:  # one caller's images are no reason to fail another's
            for work in works:
                await self._call([work])

    def _scored(self, works: list[Work]) -> list[float]:
        images = np.concatenate([work.images for work in works])
        prompts = [prompt for work in works for prompt in work.prompts]
        answer = getattr(self.reward, self.method)(images, prompts if self.method == "score" else prompts[0])
        scores = [math.nan if score is None else float(score) for score in answer]
        if len(scores) != len(images):
            raise ValueError(f"the reward gave {len(scores)} scores for {len(images)} images")
        return scores


def application(reward: Any, *, token: str | None = None, largest: int = LARGEST, **settings: Any) -> FastAPI:
    """Make the application that answers for one reward; `settings` are those of its `Turns`."""
    turns = Turns(reward, **settings)
    bodies = asyncio.Semaphore(2 * turns.together)  # one call's, while the next arrive
    app = FastAPI(openapi_url=None)
    app.state.turns = turns

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        async for _ in _rest(request):  # a client that is cut off while it sends would not see the answer
            pass
        return _answer({"error": str(error)}, error.status, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return _answer({"error": "the client has gone"}, 400)

    async def known(request: Request) -> None:
        given = request.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise RefusedError(401, "expected the header Authorization: Bearer TOKEN")

    @app.get("/health", dependencies=[Depends(known)])
    async def health() -> Response:
        return _answer({"status": "ready", "method": turns.method})

    async def score(request: Request) -> Response:
        path, length = request.url.path, request.headers.get("Content-Length", "")
        reader = READERS.get(request.headers.get("Content-Type", ""))
        if path != f"/{turns.method}":
            raise RefusedError(400, f"this reward has {turns.method}: expected POST /{turns.method}")
        if reader is None or not length.isdigit() or int(length) == 0:
            raise RefusedError(400, f"expected POST {path} with a Content-Length, of {list(READERS)}")
        problem = f"more than {largest >> 20} MiB of a request, or of its images"
        too_large = RefusedError(413, f"{problem}; serve with a higher --largest, or send fewer at once")
        if int(length) > largest:
            raise too_large
        try:
            await asyncio.wait_for(bodies.acquire(), WAIT)
        except asyncio.TimeoutError:  # noqa: UP041 - not the same before Python 3.11
            raise RefusedError(503, "others are before this one", {"Retry-After": str(AGAIN)}) from None
        try:
            body = b"".join([part async for part in _rest(request)])
            try:
                images, prompts = await asyncio.to_thread(reader, body, largest)
                _check(images, prompts, turns.method)
            except TooLargeError:
                raise too_large from None
            except Exception as error:  # a malformed body is the sender's fault, whatever it makes the reader raise
                raise RefusedError(400, _told(error)) from None
            del body
            scores = await turns.scores(Work(images, prompts, request, asyncio.get_running_loop().create_future()))
        finally:
            bodies.release()
        return _answer({"scores": [score if math.isfinite(score) else None for score in scores]})

    for method in ("score", "score_group"):
        app.post(f"/{method}", dependencies=[Depends(known)])(score)
    return app


async def _rest(request: Request) -> AsyncIterator[bytes]:
    """Read what is left of a request; nothing where all of it was read."""
    if not getattr(request.state, "read", False):
        async for part in request.stream():
            yield part
        request.state.read = True


def _answer(found: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(found, status, {"Connection": "close", **(headers or {})})


def _check(images: np.ndarray, prompts: list[str], method: str) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) != len(prompts):
        raise ValueError(f"images of shape {images.shape} and {len(prompts)} prompts; expected (N, H, W, 3)")
    if method == "score_group" and len(set(prompts)) != 1:
        raise ValueError(f"{len(set(prompts))} prompts; expected one group's, which are all the same")


def _told(error: BaseException) -> str:
    """Return the last line of a traceback, which reveals no more of this machine."""
    return f"{type(error).__name__}: {error}"[:500]


class Connection(H11Protocol):
    """A connection that is closed if its request has not arrived after `ARRIVE` seconds, however it drips."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(ARRIVE, self._close_if_slow)

    def _close_if_slow(self) -> None:
        if self.cycle is None or self.cycle.more_body:
            self.transport.abort()


def server(app: FastAPI) -> uvicorn.Server:
    """Make the server of an application; its `run` takes the sockets to listen on, and ends if the reward hangs."""
    config = uvicorn.Config(app, http=Connection, limit_concurrency=CONNECTIONS, log_level="warning", lifespan="off")
    found = uvicorn.Server(config)
    app.state.turns.hung = lambda: setattr(found, "should_exit", True)
    return found


def listening(host: str, port: int) -> socket.socket:
    """Listen on an address. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=CONNECTIONS)


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
    parser.add_argument("--together", type=int, default=1, help="requests that are scored in one call, at most")
    parser.add_argument("--timeout", type=float, default=LONGEST, help="seconds of one call, at most")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="for the class; JSON")
    arguments = parser.parse_args()
    token = os.environ.pop(TOKEN, "").strip() or None
    if token is None and not of_this_machine(arguments.host):
        sys.exit(
            f"error: whoever reaches {arguments.host}:{arguments.port} could use this server; set {TOKEN} here and "
            "where it is asked from, or leave out --host"
        )
    if arguments.together < 1 or not arguments.timeout > 0:
        problem = f"--together {arguments.together} and --timeout {arguments.timeout:g}"
        sys.exit(f"error: {problem}; expected at least 1, and more than 0 seconds")
    sys.path.insert(0, "")
    options = {}
    for name, _, value in (text.partition("=") for text in arguments.option):
        options[name] = value  # a plain word stands for itself
        with contextlib.suppress(ValueError):
            options[name] = json.loads(value)
    reward = pkgutil.resolve_name(arguments.reward)(**options)
    turns: dict[str, Any] = {"together": arguments.together, "longest": arguments.timeout}
    app = application(reward, token=token, largest=arguments.largest << 20, **turns)
    try:
        found = listening(arguments.host, arguments.port)
    except OSError as error:
        sys.exit(f"error: {error.strerror}; give another --port, or 0 for any free one")
    with found, contextlib.suppress(KeyboardInterrupt):  # the server has ended by then
        print(f"{arguments.reward} on http://{arguments.host}:{found.getsockname()[1]}", flush=True)
        server(app).run([found])
    if app.state.turns.hangs:
        print(f"error: {arguments.reward} has not come back within {arguments.timeout:g} s:", file=sys.stderr)
        faulthandler.dump_traceback()
        os._exit(1)  # its thread would be waited for


if __name__ == "__main__":
    main()
