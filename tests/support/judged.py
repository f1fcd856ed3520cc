"""A server that answers as vLLM's OpenAI-compatible API does. It looks at the images: the brighter, the better."""

import base64
import gzip
import io
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

MODEL = "Qwen/Qwen3-VL-8B-Instruct"
KEY = "sk-a-very-secret-key"


class Vllm(ThreadingHTTPServer):
    """The server. `faults` are taken from, one a request, before it answers: a status, or a text to answer with.

    `asked` holds the bodies of all requests for completions.
    """

    daemon_threads = True

    def __init__(self, faults=(), key=None, *, lists=True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.key, self.asked, self.lists = list(faults), key, [], lists
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Vllm

    def do_GET(self):
        if not self.server.lists:
            self.reply(404, {"detail": "Not Found"})
        elif self.authorized():
            self.reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.authorized():
            return
        with self.server.lock:
            self.server.asked.append(body)
            fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, int):
            self.reply(fault, {"error": {"message": "busy", "type": "error", "param": None, "code": fault}})
        elif fault == "slow":
            time.sleep(1.5)
        elif fault == "truncated":
            whole = json.dumps(completion(body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
        elif fault == "compressed":  # by a proxy that was not asked to
            self.reply(200, completion(body), compressed=True)
        elif fault == "stream":
            self.reply(200, 'data: {"choices": [{"delta": {"content": "Yes"}}]}\n\ndata: [DONE]\n\n')
        elif fault == "echo":  # a server that names the key in its answer
            self.reply(200, f"who is {self.headers['Authorization']}?")
        elif isinstance(fault, tuple):  # the tokens, counted in this way
            self.reply(200, {**completion(body), "usage": fault[0]})
        elif fault == "half":  # a whole answer that a proxy cut in two
            self.reply(200, json.dumps(completion(body))[:50])
        elif isinstance(fault, dict):  # an answer whose choice has other values
            answer = completion(body)
            answer["choices"][0] |= fault
            self.reply(200, answer)
        else:
            self.reply(200, completion(body, fault))

    def authorized(self):
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self.reply(401, {"error": f"Unauthorized: {self.headers['Authorization']}"})
        return False

    def reply(self, status, found: Any, *, compressed=False):
        sent = (found if isinstance(found, str) else json.dumps(found)).encode()
        self.send_response(status)
        if compressed:
            sent = gzip.compress(sent)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *arguments):
        pass


def completion(body, content=None):
    """Answer a request for a completion; with `content`, in these words."""
    from PIL import Image

    assert body["model"] == MODEL and body["temperature"] == 0
    assert body["max_tokens"] == 1 if body.get("logprobs") else body["max_tokens"] >= 512
    parts = body["messages"][-1]["content"]
    levels = []
    for part in parts[:-1]:
        kind, _, data = part["image_url"]["url"].partition(",")
        assert kind == "data:image/png;base64"
        levels.append(float(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean()) / 255)
    logprobs = None
    if content is None:
        text = parts[-1]["text"]
        if body.get("logprobs"):
            content = "Yes" if levels[0] >= 0.5 else "No"
        elif len(levels) == 2:
            content = f"Image {1 if levels[0] > levels[1] else 2} is better"
        elif "Met:" in text:
            content = f"- a thing: met\nMet: {round(4 * levels[0])} of 4"
        else:
            content = "\n".join(f"{name} Score (1-5): {1 + 4 * levels[0]:.2f}" for name in AXES)
    if body.get("logprobs"):
        chances = {"Yes": 0.9 * levels[0], " yes": 0.1 * levels[0], "No": 1 - levels[0], "Maybe": 1e-3}
        chances = chances if content in ("Yes", "No") else {content: 1.0}
        top = [{"token": word, "logprob": math.log(max(p, 1e-12)), "bytes": None} for word, p in chances.items()]
        assert len(top) <= body["top_logprobs"] <= 20
        logprobs = {"content": [{"token": content, "logprob": top[0]["logprob"], "bytes": None, "top_logprobs": top}]}
    message = {"role": "assistant", "content": content, "reasoning_content": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop", "stop_reason": None}
    usage = {"prompt_tokens": 100, "total_tokens": 107, "completion_tokens": 7, "prompt_tokens_details": None}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice],
            "usage": usage}  # fmt: skip


AXES = ("Alignment", "Coherence", "Style")
