"""Writing to disks that may be full, read-only or gone, and that may lose power.

What has its name is whole and on the disk: a file is synced before it is renamed, its folder afterwards. A line that
was appended is on the disk when `append` returns. That costs an fsync a line: 0.4 ms on a local disk, some ms on NFS.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import tenacity
from safetensors import SafetensorError

from pcpo_ray.errors import RunError

REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have the quota raised",
    errno.EFBIG: "no file may be that large here; raise the limit (ulimit -f)",
    errno.EROFS: "it is mounted read-only; mount it otherwise, or give --runs another folder",
    errno.EACCES: "let this user write there, or give --runs another folder",
    errno.EPERM: "let this user write there, or give --runs another folder",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is done inside writes `path`. Raises RunError that names it, the cause and what to do where it cannot."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = next((n for n in REMEDIES if n == getattr(error, "errno", None) or f"(os error {n})" in str(error)), 0)
        if isinstance(error, SafetensorError) and not number:
            raise
        cause = getattr(error, "strerror", None) or error
        remedy = REMEDIES.get(number, "mend that")
        raise RunError(f"{path} cannot be written: {cause}; {remedy}, then go on with --resume") from error


def retrying() -> tenacity.Retrying:
    """Attempts at reading what other machines replace: on NFS an open file is stale (ESTALE) once it is replaced."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OSError),
        stop=tenacity.stop_after_attempt(4),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
        reraise=True,
    )


def partial_path(path: Path) -> Path:
    """A hidden name next to a path, which nobody in the world has had: machines and containers share disks."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which it becomes at the end, whole and synced, or not at all.

    Raises RunError where the disk does not take it.
    """
    made = partial_path(path)
    with writing(path):
        try:
            yield made
            sync(made)
            made.replace(path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                made.unlink()


def replace(path: Path, content: str | bytes) -> None:
    """Write a small file, whole and synced, or not at all. Raises RunError."""
    with replacing(path) as made:
        made.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path: Path, line: str) -> None:
    """Add a line, on the disk when this returns; of one that is not taken, nothing stays. Raises RunError."""
    with writing(path):
        new = not path.exists()
        with path.open("ab") as file:
            before = file.tell()
            try:
                file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # half a line would swallow the next one
                    os.ftruncate(file.fileno(), before)
                raise
        if new:
            sync(path.parent)


def swap_in(made: Path, folder: Path) -> None:
    """Give a folder that is whole and synced its name, in place of an older one.

    Power that is lost in between leaves the older one as `replaced(folder)`: `checkpoint.mend` gives it its name back.
    """
    aside = replaced(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    made.rename(folder)
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def replaced(folder: Path) -> Path:
    """Where a folder is while another one takes its name."""
    return folder.with_name(f".{folder.name}.replaced")
