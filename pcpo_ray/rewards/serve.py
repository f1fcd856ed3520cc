"""Serve a reward over HTTP, from an environment of its own; `remote.py` is the other end.

    python serve.py package.module:Class --port 8100 --option name=value

This file needs numpy and Pillow only and nothing of pcpo_ray, so that it runs where the reward's own library asks for
versions that pcpo_ray cannot have (ImageReward: transformers before 4.56). The class has a method
score(images, prompts), with images as (N, H, W, 3) bytes.
"""

import argparse
import base64
import io
import json
import math
import pkgutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

LARGEST_REQUEST = 1 << 30


def read_json(body: bytes) -> tuple[np.ndarray, list[str]]:
    from PIL import Image

    found = json.loads(body)
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in found["images"]]
    return np.stack([np.asarray(picture) for picture in pictures]), list(found["prompts"])


def read_npz(body: bytes) -> tuple[np.ndarray, list[str]]:
    with np.load(io.BytesIO(body), allow_pickle=False) as found:
        return found["images"], [str(prompt) for prompt in found["prompts"]]


READERS = {"application/json": read_json, "application/x-npz": read_npz}


def handler(reward: Any) -> type[BaseHTTPRequestHandler]:
    """Answers for one reward, a request at a time."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/health"
            self._answer(200 if found else 404, {"status": "ready"} if found else {"error": f"no {self.path}"})

        def do_POST(self) -> None:
            reader = READERS.get(self.headers.get("Content-Type", ""))
            length = int(self.headers.get("Content-Length", 0))
            if self.path != "/score" or reader is None or not 0 < length <= LARGEST_REQUEST:
                self._answer(400, {"error": f"expected POST /score, 1 to {LARGEST_REQUEST} bytes of {list(READERS)}"})
                return
            try:
                images, prompts = reader(self.rfile.read(length))
            except Exception as error:  # whatever a malformed body makes its reader raise is the sender's fault
                self._answer(400, {"error": f"{type(error).__name__}: {error}"})
                return
            try:
                with lock:
                    scores = [float(score) for score in reward.score(images, prompts)]
            except Exception as error:  # the sender tries again, and counts it
                self._answer(500, {"error": f"{type(error).__name__}: {error}"})
                return
            self._answer(200, {"scores": [score if math.isfinite(score) else None for score in scores]})

        def _answer(self, status: int, found: dict[str, Any]) -> None:
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a reward over HTTP.")
    parser.add_argument("reward", help="package.module:Class")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="for the class; JSON")
    arguments = parser.parse_args()
    sys.path.insert(0, "")
    options = {}
    for text in arguments.option:
        name, _, value = text.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:  # a plain word is itself
            options[name] = value
    reward = pkgutil.resolve_name(arguments.reward)(**options)
    try:
        listening = ThreadingHTTPServer((arguments.host, arguments.port), handler(reward))
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        sys.exit(f"error: {where} cannot be listened on: {error.strerror}; give another --port, or 0 for any free one")
    with listening as server:
        print(f"{arguments.reward} on http://{arguments.host}:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
