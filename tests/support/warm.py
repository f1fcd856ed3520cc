"""Ray workers that start warm: forks of one process that has imported torch and diffusers already.

An actor of ours takes 12 s of a processor until torch and diffusers are imported, and the tests on Ray start hundreds
of actors. `python -m tests.support.warm SOCKET` imports once and listens. Each Ray worker is a fork of it: a process
of its own, with its own files, environment and working folder, which is killed and stopped like any other. Ray starts
this file in place of Python (runtime_env.py_executable). Where nobody listens, it starts Python after all.
"""

import array
import json
import os
import runpy
import signal
import socket
import sys
import traceback

SOCKET = "PCPO_WARM_SOCKET"
FILES = (0, 1, 2)


def environment(path: str) -> dict[str, str]:
    """The variables under which every driver has its workers start warm, from whoever listens at a path."""
    executable = f"{sys.executable} -S -E {os.path.abspath(__file__)}"
    return {SOCKET: path, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"py_executable": executable}})}


def ask(path: str) -> None:
    """Have a fork run what this process was started with, and wait for its end."""
    there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    there.connect(path)
    asked = json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}).encode()
    fds = array.array("i", FILES)
    there.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    there.sendall(asked)
    there.recv(1)  # closed when the fork has ended


def serve(path: str) -> None:
    """Import what workers need, then fork for each that asks, until the process that started this one has ended."""
    import peft
    import pyarrow.parquet
    import scipy.stats
    import torch
    import transformers
    from diffusers import AutoencoderKL, FluxPipeline, StableDiffusionPipeline

    assert all((peft, pyarrow, scipy.stats, torch, transformers, AutoencoderKL, FluxPipeline, StableDiffusionPipeline))
    assert "ray" not in sys.modules  # it reads its environment once, at import
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(64)
    listening.settimeout(1.0)
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            there, _ = listening.accept()
        except TimeoutError:
            continue
        there.settimeout(10.0)
        fork(there, listening)
        there.close()


def fork(there: socket.socket, listening: socket.socket) -> None:
    """Make one worker. Its end of the connection closes when it ends."""
    size, fds, _, _ = socket.recv_fds(there, 8, len(FILES))
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += there.recv(1 << 16)
    if os.fork():
        for fd in fds:
            os.close(fd)
        return
    listening.close()
    for fd, target in zip(fds, FILES, strict=True):
        os.dup2(fd, target)
        os.close(fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    run(**json.loads(asked))


def run(argv: list[str], env: dict[str, str], cwd: str) -> None:
    """Be the Python that was asked for, to its end."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    os.setsid()
    sys.argv = argv
    sys.path[:] = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    code = 1
    try:
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if SOCKET in os.environ and sys.argv[1:] and sys.argv[1].endswith("default_worker.py"):
        try:
            ask(os.environ[SOCKET])
        except (FileNotFoundError, ConnectionRefusedError):
            os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    else:
        serve(sys.argv[1])
