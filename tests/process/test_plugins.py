"""Code of the user's own leaves the process as it was, and finds what it left itself."""

import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pcpo_ray.process import plugins

KIND = "tests.process.test_plugins:Thing"


def disturbances(folder):
    """What code may change of a process, each with what reads it."""
    entered = torch.inference_mode()
    return {
        "folder": (lambda: os.chdir(folder), os.getcwd),
        "variable set": (lambda: os.environ.update(PCPO_RAY_TEST="1"), lambda: dict(os.environ)),
        "variable gone": (lambda: os.environ.pop("PATH"), lambda: dict(os.environ)),
        "output": (lambda: setattr(sys, "stdout", open(os.devnull, "w")), lambda: sys.stdout),
        "signal": (lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN), lambda: signal.getsignal(signal.SIGTERM)),
        "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
        "gradients entered": (lambda: torch.no_grad().__enter__(), torch.is_grad_enabled),
        "autocast": (lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")),
        "dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
        "half": (lambda: torch.set_default_dtype(torch.bfloat16), lambda: torch.ones(1).dtype),
        "device": (lambda: torch.set_default_device("meta"), lambda: torch.ones(1).device),
        "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 2), torch.get_num_threads),
        "determinism": (
            lambda: torch.use_deterministic_algorithms(True, warn_only=True),
            torch.are_deterministic_algorithms_enabled,
        ),
        "precision": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
        "newer precision": (
            lambda: setattr(getattr(torch.backends.mkldnn, "matmul"), "fp32_precision", "bf16"),  # noqa: B009 - mypy
            torch.get_float32_matmul_precision,
        ),
        "tf32": (
            lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
            lambda: torch.backends.cuda.matmul.allow_tf32,
        ),
        "cudnn": (lambda: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark),
        "numpy's errors": (lambda: np.seterr(all="raise"), np.geterr),
        "inference": (lambda: entered.__enter__(), torch.is_inference_mode_enabled),
        "attention": (lambda: torch.backends.cuda.enable_math_sdp(False), torch.backends.cuda.math_sdp_enabled),
        "anomalies": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
        "warnings": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
        "logging": (lambda: logging.disable(logging.CRITICAL), lambda: logging.root.manager.disable),
        "root logger": (lambda: logging.basicConfig(level=logging.ERROR, force=True), root_logger),
        "garbage": (gc.disable, gc.isenabled),
        "import path": (sys.path.clear, lambda: list(sys.path)),
        "umask": (lambda: os.umask(0o077), lambda: mode_of_new(folder / "new")),
        "locale": (lambda: locale.setlocale(locale.LC_ALL, "C"), lambda: locale.setlocale(locale.LC_ALL)),
        "socket timeout": (lambda: socket.setdefaulttimeout(0.1), socket.getdefaulttimeout),
        "hook": (
            lambda: torch.nn.modules.module.register_module_forward_hook(lambda *_: torch.zeros(1)),
            lambda: torch.nn.Identity()(torch.ones(1)),
        ),
        "mkldnn": (lambda: torch.backends.mkldnn.set_flags(False), torch._C._get_mkldnn_enabled),
        "sums": (
            lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
            lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        ),
        "denormals": (lambda: torch.set_flush_denormal(True), lambda: (torch.full((64,), 1e-40) * 1.0).tolist()),
        "autocast's cache": (lambda: torch.set_autocast_cache_enabled(False), torch.is_autocast_cache_enabled),
        "numpy's handler": (lambda: np.seterrcall(print), np.geterrcall),
        "switch interval": (lambda: sys.setswitchinterval(1.0), sys.getswitchinterval),
        "recursion": (lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 7), sys.getrecursionlimit),
        "random": (lambda: random.seed(5), random.getstate),
        "numpy's numbers": (lambda: np.random.seed(5), lambda: str(np.random.get_state())),
        "torch's numbers": (lambda: torch.manual_seed(5), lambda: torch.get_rng_state().tolist()),
        "numbers drawn": (lambda: torch.rand(3), lambda: torch.get_rng_state().tolist()),
    }


def mode_of_new(path):
    path.unlink(missing_ok=True)
    path.touch()
    return path.stat().st_mode


def root_logger():
    return logging.root.level, list(logging.root.handlers)


@pytest.mark.parametrize("what", disturbances(Path()))
@pytest.mark.parametrize("ends", ["returns", "raises", "exits"])
def test_the_process_is_as_it_was_whatever_was_done_to_it(what, ends, tmp_path):
    disturb, read = disturbances(tmp_path)[what]
    before = read()
    try:
        with plugins.isolated(f"{what} {ends}:Thing"):
            disturb()
            if ends == "raises":
                raise ZeroDivisionError
            if ends == "exits":
                sys.exit(3)
    except (ZeroDivisionError, plugins.EndedError):
        assert ends != "returns"
    assert read() == before


def test_a_module_finds_the_settings_that_it_left_and_no_other_does(tmp_path):
    with plugins.isolated("one:Thing"):
        os.chdir(tmp_path)
        torch.set_default_dtype(torch.float64)
    with plugins.isolated("other:Thing"):
        assert os.getcwd() != str(tmp_path) and torch.get_default_dtype() is torch.float32
    with plugins.isolated("one:Another"):
        assert os.getcwd() == str(tmp_path) and torch.get_default_dtype() is torch.float64
        torch.set_default_dtype(torch.float32)
    with plugins.isolated("one:Thing"):
        assert os.getcwd() == str(tmp_path) and torch.get_default_dtype() is torch.float32


def test_random_numbers_depend_on_the_seed_alone():
    def drawn(seed):
        torch.rand(1), np.random.rand(), random.random()
        with plugins.isolated(KIND, seed):
            return torch.rand(1).item(), np.random.rand(), random.random()

    assert drawn(1) == drawn(1) != drawn(2)


def test_what_would_end_the_process_is_an_error_and_an_interrupt_is_not():
    with pytest.raises(plugins.EndedError) as caught, plugins.isolated(KIND):
        sys.exit("no licence")
    assert plugins.explained(caught.value).startswith("SystemExit: no licence, which would end the whole process (")
    assert f"{__file__}, line " in plugins.explained(caught.value)
    with pytest.raises(KeyboardInterrupt), plugins.isolated(KIND):
        raise KeyboardInterrupt


def test_an_exit_that_nothing_would_see_is_an_error_but_in_a_forked_child():
    before = os._exit
    with pytest.raises(plugins.EndedError, match="3"), plugins.isolated(KIND):
        child = os.fork()
        if child == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        os._exit(3)
    assert os._exit is before


def test_an_error_is_told_with_the_last_line_of_the_users_own_code():
    try:
        np.zeros(3).reshape(2, 2)  # numpy's own files are nobody's to mend
    except ValueError as error:
        told = plugins.explained(error)
        line = error.__traceback__.tb_lineno
    assert told == f"ValueError: cannot reshape array of size 3 into shape (2,2) ({__file__}, line {line})"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            torch.nn.functional.linear(torch.ones(2, 3), torch.ones(2, 2))
        except RuntimeError as error:
            assert f"({__file__}, line {error.__traceback__.tb_lineno})" in plugins.explained(error)


def test_what_a_module_does_while_it_is_imported_stays_with_it(tmp_path, monkeypatch):
    (tmp_path / "restless.py").write_text(
        "import os, torch\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\nclass Thing:\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert plugins.resolve_class("restless:Thing").__name__ == "Thing"
    sys.modules.pop("restless")
    assert os.getcwd() == str(tmp_path) and torch.get_default_dtype() is torch.float32
    with plugins.isolated("restless:Thing"):
        assert os.getcwd() == "/" and torch.get_default_dtype() is torch.float64
