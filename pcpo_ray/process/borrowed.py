"""A process that is somebody else's, such as a notebook's or a script's: what a run changes in it is put back."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pcpo_ray.process import plugins

LEFT_ALONE = ("warnings", "garbage collector", "signals", "exit", "streams")
"""Settings that a run does not change, or that others restore: signals.py the signals, isolated() the rest."""

LIBRARIES = ("diffusers", "transformers")
"""Libraries whose progress bars a run turns off."""

OURS: Mapping[str, Any] = {
    "default dtype": torch.float32,
    "default device": torch.device("cpu"),
    "gradients": True,
}
"""Settings that a run starts with, whatever the process has: they decide about its bits."""

STATES = ("PartialState", "AcceleratorState", "GradientState")
"""Accelerate's classes whose instances all share one state, for the life of a process."""


@contextlib.contextmanager
def process() -> Iterator[None]:
    """Borrow the process: afterwards its path, torch's settings, random numbers and loggers are as they were."""
    with contextlib.ExitStack() as ending:
        ending.enter_context(_settings())
        ending.enter_context(_loggers())
        ending.enter_context(_progress_bars())
        ending.enter_context(_accelerator())
        yield


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Put back all that torch, NumPy and Python keep once a process, random numbers included."""
    settings = {key: both for key, both in plugins.SETTINGS.items() if key not in LEFT_ALONE}
    before, numbers = {key: read() for key, (read, _) in settings.items()}, plugins.random_state()
    try:
        for key, wanted in OURS.items():
            if before[key] != wanted:
                settings[key][1](wanted)
        yield
    finally:
        for key, (read, write) in settings.items():
            if read() != before[key]:
                write(before[key])
        plugins.set_random_state(numbers)


@contextlib.contextmanager
def _loggers() -> Iterator[None]:
    """Put back the root logger, and the levels of all loggers that there were."""
    root, handlers = logging.root, list(logging.root.handlers)
    there = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    levels = [(logger, logger.level) for logger in (root, *there)]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in levels:
            if logger.level != level:
                logger.setLevel(level)


@contextlib.contextmanager
def _progress_bars() -> Iterator[None]:
    shown = {name: name not in sys.modules or _logging(name).is_progress_bar_enabled() for name in LIBRARIES}
    try:
        yield
    finally:
        for name, wanted in shown.items():
            if name in sys.modules and wanted:
                _logging(name).enable_progress_bar()


def _logging(library: str) -> Any:
    return sys.modules[library].utils.logging


@contextlib.contextmanager
def _accelerator() -> Iterator[None]:
    """Give a run an Accelerator of its own; the settings of one that the process has already are put back."""
    before = {name: dict(state) for name, state in _shared().items()}
    for state in _shared().values():
        state.clear()
    try:
        yield
    finally:
        for name, state in _shared().items():
            state.clear()
            state.update(before.get(name, {}))


def _shared() -> dict[str, Any]:
    found = sys.modules.get("accelerate.state")
    return {} if found is None else {name: getattr(found, name)._shared_state for name in STATES}
