"""Code of the user's own: found by its name in a config, and kept from changing the process for everybody else.

In one process rewards, samplers and the learner share what a process has one of: its working folder, its random
numbers, torch's settings. `apart` gives each of the user's modules these for itself.
"""

import contextlib
import gc
import locale
import logging
import os
import pkgutil
import random
import signal
import socket
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from pcpo_ray.errors import PcpoError
from pcpo_ray.process import signals

PACKAGE = Path(__file__).parents[1]
INSTALLED = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def resolve_class(name: str) -> Any:
    """Import what `package.module:Class` names, with the working folder on the path as Python has it.

    Raises whatever importing it raises.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with isolated(name):
        return pkgutil.resolve_name(name)


class EndedError(Exception):
    """Code that wanted to end the whole process, as `sys.exit` and a KeyboardInterrupt of its own do."""


def explained(error: BaseException) -> str:
    """Describe an error with the file and line of the user's own code where it was raised, if any."""
    seen = error.__cause__ if isinstance(error, EndedError) and error.__cause__ is not None else error
    if isinstance(seen, SyntaxError):  # it names its file and line itself
        return f"{type(seen).__name__}: {seen}"
    ours = isinstance(seen, PcpoError)  # these say in words what is wrong
    text = str(seen) if ours else "".join(traceback.format_exception_only(seen)).strip()
    if seen is not error:
        text = f"{text}, which would end the whole process"
    for frame in reversed(traceback.extract_tb(seen.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in (PACKAGE, *INSTALLED)):
            return f"{text} ({path}, line {frame.lineno})"
    return text


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # deleted meanwhile
        return None


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _autocast() -> tuple[tuple[str, bool, torch.dtype], ...]:
    return tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def _set_autocast(wanted: tuple[tuple[str, bool, torch.dtype], ...]) -> None:
    for kind, enabled, dtype in wanted:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _set_device(wanted: torch.device) -> None:
    torch.set_default_device(None if wanted == torch.device("cpu") else wanted)  # None is torch's own way without one


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_determinism(wanted: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(wanted[0], warn_only=wanted[1])


BACKENDS: Any = torch.backends
PRECISIONS = tuple(
    (place, "fp32_precision")
    for place in (
        *(BACKENDS, BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn),
        *(BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn),
    )
)
SWITCHES = tuple((BACKENDS.cudnn, name) for name in ("enabled", "benchmark", "deterministic"))
SIGNALS = (*signals.NUMBERS, signal.SIGALRM)
STREAMS = ((sys, "stdin"), (sys, "stdout"), (sys, "stderr"), (sys, "excepthook"))

SUMS = tuple(
    (BACKENDS.cuda.matmul, f"allow_{name}")
    for name in ("fp16_reduced_precision_reduction", "bf16_reduced_precision_reduction", "fp16_accumulation")
)

HOOKS = tuple(
    getattr(torch.nn.modules.module, f"_global_{name}_hooks")
    for name in ("forward_pre", "forward", "backward_pre", "backward")
)
"""Hooks of all modules, ours among them."""


def _set_hooks(wanted: list[dict[int, Any]]) -> None:
    for hooks, kept in zip(HOOKS, wanted, strict=True):
        hooks.clear()
        hooks.update(kept)


def _mkldnn() -> tuple[bool, bool]:
    return torch._C._get_mkldnn_enabled(), torch._C._get_mkldnn_deterministic()


def _set_mkldnn(wanted: tuple[bool, bool]) -> None:
    torch._C._set_mkldnn_enabled(wanted[0])
    torch._C._set_mkldnn_deterministic(wanted[1])


ATTENTION = ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")


def _attention() -> tuple[bool, ...]:
    return tuple(getattr(BACKENDS.cuda, f"{name}_enabled")() for name in ATTENTION)


def _set_attention(wanted: tuple[bool, ...]) -> None:
    for name, enabled in zip(ATTENTION, wanted, strict=True):
        getattr(BACKENDS.cuda, f"enable_{name}")(enabled)


def _attributes(*places: tuple[Any, str]) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Return a getter and a setter for these attributes."""

    def read() -> tuple[Any, ...]:
        return tuple(getattr(place, name) for place, name in places)

    def write(values: tuple[Any, ...]) -> None:
        for (place, name), value in zip(places, values, strict=True):
            setattr(place, name, value)

    return read, write


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer names, which it does not translate back
        return None


def _set_matmul_precision(wanted: str | None) -> None:
    if wanted is not None:
        torch.set_float32_matmul_precision(wanted)


_entered: list[Any] = []
"""Inference mode lasts as long as what has set it."""


def _set_inference_mode(wanted: bool) -> None:
    _entered.append(torch.inference_mode(wanted))
    _entered[-1].__enter__()


def _flushes() -> bool:
    """Return True if numbers below float32's smallest normal one become 0 (set_flush_denormal)."""
    return bool(torch.full((1,), 1e-40, dtype=torch.float32, device="cpu") * 1 == 0)


def _set_anomaly(wanted: bool) -> None:
    torch.autograd.set_detect_anomaly(wanted)


def _umask() -> int:
    before = os.umask(0o077)  # it can only be read by setting it: meanwhile files are for nobody else
    os.umask(before)
    return before


def _root_logger() -> tuple[int, list[logging.Handler]]:
    return logging.root.level, list(logging.root.handlers)


def _set_root_logger(wanted: tuple[int, list[logging.Handler]]) -> None:
    logging.root.setLevel(wanted[0])
    logging.root.handlers[:] = wanted[1]


def _set_import_path(wanted: list[str]) -> None:
    sys.path[:] = wanted


def _set_warnings(wanted: list[Any]) -> None:
    warnings.resetwarnings()  # forgets what was shown by other filters
    filters: Any = warnings.filters
    filters[:] = wanted


def _signals() -> dict[int, Any]:
    """Who handles each signal; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def _set_signals(wanted: Mapping[int, Any]) -> None:
    for number, handler in wanted.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "working folder": (_working_folder, lambda wanted: None if wanted is None else os.chdir(wanted)),
    "environment": (lambda: dict(os.environ), _set_environment),
    "import path": (lambda: list(sys.path), _set_import_path),
    "umask": (_umask, os.umask),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), lambda wanted: locale.setlocale(locale.LC_ALL, wanted)),
    "socket timeout": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "streams": _attributes(*STREAMS),
    "signals": (_signals, _set_signals),
    "exit": _attributes((os, "_exit")),
    "inference mode": (torch.is_inference_mode_enabled, _set_inference_mode),
    "gradients": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "autocast": (_autocast, _set_autocast),
    "autocast's cache": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "hooks": (lambda: [dict(hooks) for hooks in HOOKS], _set_hooks),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_device),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "determinism": (_determinism, _set_determinism),
    "matmul precision": (_matmul_precision, _set_matmul_precision),
    "precisions": _attributes(*PRECISIONS),
    "cudnn": _attributes(*SWITCHES),
    "attention": (_attention, _set_attention),
    "sums": _attributes(*SUMS),
    "mkldnn": (_mkldnn, _set_mkldnn),
    "denormals": (_flushes, torch.set_flush_denormal),
    "numpy's errors": (np.geterr, lambda wanted: np.seterr(**wanted)),
    "numpy's handler": (np.geterrcall, np.seterrcall),
    "anomaly detection": (torch.is_anomaly_enabled, _set_anomaly),
    "warnings": (lambda: list(warnings.filters), _set_warnings),
    "logging": _attributes((logging.root.manager, "disable")),
    "root logger": (_root_logger, _set_root_logger),
    "garbage collector": (gc.isenabled, lambda wanted: gc.enable() if wanted else gc.disable()),
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "switch interval": (sys.getswitchinterval, sys.setswitchinterval),
}
"""Getter and setter of a setting that a process has once."""

_left: dict[str, dict[str, Any]] = {}
"""Settings that a module changed, by module name."""


_end, _process = os._exit, os.getpid()


def _exit(status: int) -> NoReturn:
    """Stands in the place of os._exit, which no `except` would see; a child that was forked ends by it as ever."""
    if os.getpid() != _process:
        _end(status)
    raise SystemExit(status)


@contextlib.contextmanager
def isolated(name: str, seed: int = 0) -> Iterator[None]:
    """Inside, code of the module that `name` (`package.module:Class`) names; afterwards the process is as it was.

    The module finds the settings that it left, and random numbers that depend on `seed` alone. Raises EndedError where
    it would end the process (sys.exit, os._exit), and KeyboardInterrupt where a signal to end came, whatever it made of
    that.
    """
    module = name.partition(":")[0]
    raised = signals.raised()
    numbers = random_state()
    ours = {key: read() for key, (read, _) in SETTINGS.items()}
    found = _left.get(module, {})
    _put({**found, "signals": _own_signals(found["signals"])} if "signals" in found else found)
    os._exit = _exit
    _seed(seed)
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and signals.may_come():
            raise
        raise EndedError(str(error)) from error
    finally:
        now = {key: read() for key, (read, _) in SETTINGS.items()}
        _left[module] = {key: value for key, value in now.items() if value != ours[key]}
        _put({key: ours[key] for key in _left[module]})
        set_random_state(numbers)
        if signals.raised() > raised:
            raise KeyboardInterrupt


def _own_signals(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Drop a module's handlers of signals that end a run: only the run itself decides about those."""
    return {number: handler for number, handler in handlers.items() if number not in signals.NUMBERS}


def _put(settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        SETTINGS[key][1](value)


def random_state() -> tuple[Any, ...]:
    """Return the state of all global random numbers: Python's, NumPy's, torch's."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_state(state: tuple[Any, ...]) -> None:
    """Put back what `random_state` returned."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
