"""diffusers' schedulers from a model's config, without all that diffusers imports for it."""

import inspect
from collections.abc import Mapping
from typing import Any


def made(scheduler: type, config: Mapping[str, Any]) -> Any:
    """The scheduler with the config of any of its kind: what diffusers' `from_config` gives.

    That imports every other scheduler, and scipy with them, to tell whose the unknown keys are.
    """
    known = inspect.signature(scheduler).parameters
    default = config.get("_use_default_values", ())
    return scheduler(**{name: value for name, value in config.items() if name in known and name not in default})
