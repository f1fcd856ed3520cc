"""A server in the place of Ray's dashboard, with answers of a test's own."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pcpo_ray.cluster.control import jobs

VERSION = (200, json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "y"}))


@contextmanager
def server(answers):
    """A server on a free port; `answers` are (status, body) by path, or a function that answers itself.

    What is sent to it is the handler's `body`.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answers(self) if callable(answers) else answers.get(self.path, (404, "nothing here"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}", seen
        finally:
            found.shutdown()
            thread.join()


def job(run, number, status, **more):
    found = {"type": "SUBMISSION", "submission_id": f"{run}-{number}", "status": status, "entrypoint": "pcpo-ray train"}
    return {**found, "start_time": number, "metadata": {jobs.RUN: run} if run else {}, **more}
