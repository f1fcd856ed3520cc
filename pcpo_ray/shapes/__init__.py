"""The embedded world: captions, the images they describe, an oracle that reads the images, and small models of both.

Everything that a run needs is in the package, so nothing is downloaded at first use.
"""

from pathlib import Path

from pcpo_ray.errors import ModelError

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def checkpoint(name: str) -> Path:
    """Find the folder of a shipped model: "shapes-sd" and "shapes-flux" (diffusers), "shapes-clip" (open_clip).

    Raises ModelError, naming the shipped models, for any other name.
    """
    shipped = sorted(folder.name for folder in CHECKPOINTS.iterdir() if folder.is_dir()) if CHECKPOINTS.is_dir() else []
    if name not in shipped:
        raise ModelError(f"got model {name!r}, expected one that the package ships: {', '.join(shipped) or 'none'}")
    return CHECKPOINTS / name
