"""The shapes world: captions, the images they describe, an oracle that reads the images, and small models of both.

Everything that a run needs is in the package, so nothing is downloaded at first use.
"""

from collections.abc import Sequence
from pathlib import Path

from pcpo_ray.errors import ModelError, nearest

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def checkpoint(name: str) -> Path:
    """Find the folder of a shipped model: "shapes-sd" and "shapes-flux" (diffusers), "shapes-clip" (open_clip).

    Raises ModelError, naming the shipped models, for any other name.
    """
    return named(name, folders(CHECKPOINTS))


def folders(checkpoints: Path) -> list[Path]:
    """List the folders of a world's shipped models."""
    return sorted(one for one in checkpoints.iterdir() if one.is_dir()) if checkpoints.is_dir() else []


def named(name: str, shipped: Sequence[Path]) -> Path:
    """Find the folder of that name. Raises ModelError, naming those there are, if it is not there."""
    found = {folder.name: folder for folder in shipped}
    if name not in found:
        raise ModelError(
            f"got model {name!r}{nearest(name, found)}, expected one that the package ships: "
            f"{', '.join(found) or 'none'}; there is no file or folder of that name in {Path.cwd()} either"
        )
    return found[name]
