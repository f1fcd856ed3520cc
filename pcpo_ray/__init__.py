"""PCPO on Ray: prompts go to samplers, samplers make images and trajectories, scorers score the images, scores become
advantages, the learner applies the credit-weighted update, and its new weights go back to the samplers.

Proportionate Credit Policy Optimization: arXiv 2509.25774. `train`, `evaluate`, `sample` and `load_run` are the package
from Python (docs/api.md). Each is imported when it is first used, so `import pcpo_ray` takes no time.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcpo_ray.commands.api import evaluate, load_run, sample, train
    from pcpo_ray.commands.results import EvaluationImage, EvaluationResult, RunResult, SampleResult
    from pcpo_ray.data.records import EvaluationRecord, StepRecord
    from pcpo_ray.errors import AlarmError, PcpoError
    from pcpo_ray.runs.intervals import Estimate
    from pcpo_ray.training.callbacks import STOP, Callback

__version__ = "0.1.0"

__all__ = [
    "STOP",
    "AlarmError",
    "Callback",
    "Estimate",
    "EvaluationImage",
    "EvaluationRecord",
    "EvaluationResult",
    "PcpoError",
    "RunResult",
    "SampleResult",
    "StepRecord",
    "evaluate",
    "load_run",
    "sample",
    "train",
]

_MODULES = {
    "commands.api": ("evaluate", "load_run", "sample", "train"),
    "commands.results": ("EvaluationImage", "EvaluationResult", "RunResult", "SampleResult"),
    "data.records": ("EvaluationRecord", "StepRecord"),
    "errors": ("AlarmError", "PcpoError"),
    "runs.intervals": ("Estimate",),
    "training.callbacks": ("STOP", "Callback"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pcpo_ray' has no attribute {name!r}")
    import importlib

    globals()[name] = found = getattr(importlib.import_module(f"pcpo_ray.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
