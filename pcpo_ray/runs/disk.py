"""Writing to disks that may be full, read-only or gone, and that may lose power.

A file under its final name is complete and on the disk: it is synced before it is renamed, its folder afterwards. A
line is on the disk when `append` returns, at the cost of an fsync: 0.4 ms on a local disk, some ms on NFS.
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
    """Turn a failed write to `path` into a RunError with the cause and a remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = next((n for n in REMEDIES if n == getattr(error, "errno", None) or f"(os error {n})" in str(error)), 0)
        if isinstance(error, SafetensorError) and not number:
            raise
        cause = getattr(error, "strerror", None) or error
        remedy = REMEDIES.get(number, "fix that")
        raise RunError(f"{path} cannot be written: {cause}; {remedy}, then go on with --resume") from error


def retrying() -> tenacity.Retrying:
    """Retry reading a file that other machines replace: on NFS an open file turns stale (ESTALE) then."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OSError),
        stop=tenacity.stop_after_attempt(4),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
        reraise=True,
    )


def partial_path(path: Path) -> Path:
    """Return a hidden, globally unique name next to a path; machines and containers share disks."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` at the end, complete and synced, or not at all.

    Raises RunError if it cannot be written.
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
    """Append a line and sync it; a line that cannot be written leaves nothing behind. Raises RunError."""
    with writing(path):
        new = not path.exists()
        with path.open("ab", buffering=0) as file:  # what a buffer keeps of a refused line is written when it closes
            before = os.fstat(file.fileno()).st_size
            try:
                left = memoryview(f"{line}\n".encode())
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # half a line would swallow the next one
                    os.ftruncate(file.fileno(), before)
                raise
        if new:
            sync(path.parent)


def swap_in(made: Path, folder: Path) -> None:
    """Rename a complete, synced folder into place, replacing an older one.

    A power cut in between leaves the older one as `replaced(folder)`; checkpoints.recover_interrupted renames it back.
    """
    aside = replaced(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    made.rename(folder)
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def bring(made: Path, folder: Path) -> None:
    """Swap in a complete folder from elsewhere. One on another device is copied, and stays for the caller to delete."""
    try:
        swap_in(made, folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = partial_path(folder)
        try:
            shutil.copytree(made, copy)
            for path in (*copy.rglob("*"), copy):
                sync(path)
            swap_in(copy, folder)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def replaced(folder: Path) -> Path:
    """Return the path to which a folder moves while another one takes its name."""
    return folder.with_name(f".{folder.name}.replaced")
