"""Classes of the user's own, named in a config as `package.module:Class`."""

import pkgutil
import sys
from pathlib import Path
from typing import Any


def own_class(name: str) -> Any:
    """What the name stands for, its module searched in the working folder as Python itself would.

    Raises whatever importing it raises.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return pkgutil.resolve_name(name)
