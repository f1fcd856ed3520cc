"""One writer per run: a process that starts or resumes a run leaves a token there, and checks it before writing.

It also holds a lock (flock) until it ends: while it lives, no other process of this machine can resume the run, and
afterwards any can at once. A resume on another machine takes the run over: it replaces the token, and the first
process stops before its next write. On a disk without locks, the token is the only guard.

One race remains on a shared disk: a line being written while another machine takes over. No disk can make a write
depend on the content of another file. Object storage can: stored.py.
"""

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from pcpo_ray.errors import RunError, TakenOverError
from pcpo_ray.runs.disk import replace, writing

WRITER, LOCK = ".writer", ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of disks that have no locks."""

TRIES, AGAIN = 4, 0.05
"""The number of tries for a lock that is held, and the seconds from one to the next."""

_held: dict[tuple[int, int], int] = {}
"""Open lock files that this process holds until it ends, by device and inode."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """The writer of a run: `id` is unique per start or resume, `machine` per boot of a kernel, containers included."""

    id: str
    host: str
    machine: str
    pid: int
    since: str

    @classmethod
    def new(cls) -> "Token":
        return cls(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    @classmethod
    def of(cls, text: str | bytes | None) -> "Token | None":
        """Parse a token, None if the text holds none."""
        try:
            return cls(**json.loads(text or ""))
        except (ValueError, TypeError):
            return None

    @property
    def here(self) -> bool:
        """True if the writer is, or was, a process of this machine."""
        return self.machine == _machine()

    @property
    def own(self) -> bool:
        """True if the writer is this very process."""
        return self.here and self.pid == os.getpid()

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


def read(folder: Path) -> Token | None:
    """Return the token of the run's writer, None if there is none yet."""
    for _ in range(2):
        try:
            return Token.of((folder / WRITER).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ESTALE:  # replaced on another machine while it was read
                raise RunError(
                    f"{folder / WRITER} cannot be read: {error}; fix that, then go on with --resume"
                ) from error
    return None


def take(folder: Path, token: Token) -> None:
    """Make this process the writer of the run in a folder. Raises RunError while another one here is."""
    lock(folder)
    replace(folder / WRITER, token.text)


def lock(folder: Path) -> None:
    """Lock a folder for this process until it ends. Raises RunError if another one of this machine holds it."""
    path = folder / LOCK
    with writing(folder):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    status = os.fstat(opened)
    if (status.st_dev, status.st_ino) in _held:
        os.close(opened)
        return
    try:
        _lock(opened)
    except OSError as error:
        os.close(opened)
        if error.errno in NO_LOCKS:
            return
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise RunError(f"{path} cannot be locked: {error}; fix that, then go on with --resume") from error
        token = read(folder)
        if token is None or token.machine == _machine():
            raise RunError(
                f"{folder} is being written by {token or 'another process of this machine'}; wait for its end, or stop "
                "it (Ctrl-C there, or kill its process), then go on with --resume"
            ) from None
        return  # another machine holds it, on a shared disk: the token takes the run over
    _held[status.st_dev, status.st_ino] = opened


def _lock(opened: int) -> None:
    """Take a lock. One that is held for a moment only, by `held` in another process, is waited for."""
    for attempt in range(TRIES):
        try:
            return fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) or attempt == TRIES - 1:
                raise
            time.sleep(AGAIN)


def held(folder: Path) -> bool | None:
    """Return whether a process holds the lock of a run, also one of another machine if the disk tells.

    None where the disk has no locks, or the lock cannot be read.
    """
    try:
        opened = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(opened)
    return False


def is_gone(folder: Path) -> bool:
    """Return whether the run's writer was a process of this machine that has ended, by kill -9 or otherwise.

    False where that cannot be known: the writer is on another machine, or the disk has no locks. It holds the lock for
    an instant, so ask seldom: a process that begins to write just then is refused.
    """
    token = read(folder)
    return token is not None and token.here and (folder / LOCK).exists() and held(folder) is False


def check(own: str, found: Token | None, place: str, kept: Path) -> None:
    """Raise TakenOverError unless the token found is the one with the id `own`, RunError where there is none."""
    if found is None:
        raise RunError(
            f"{place} has no {WRITER} here ({socket.gethostname()}), which the run's driver wrote: it was deleted, or "
            "this node has another disk; have runs lie on storage that all nodes share (--runs with a mounted path, "
            "or a URL such as s3://bucket/runs)"
        )
    if found.id != own:
        raise TakenOverError(
            f"{found} has taken over the run {place}; this process writes nothing more. "
            f"What it has recorded is in {kept}"
        )


def _machine() -> str:
    """Return the id of this boot of the kernel, among whose processes flock is reliable."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
