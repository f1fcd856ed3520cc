"""Writing to disks that may be full, read-only or gone."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
