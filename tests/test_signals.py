"""Signals: which end a run, which are left alone, and where they take effect."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pcpo_ray import signals


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_each_is_an_interrupt_inside_and_what_it_was_outside(number):
    before = signal.getsignal(number)
    with signals.handled(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_one_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_noted_ones_take_effect_where_somebody_looks_and_once():
    reached = []
    with signals.noted() as noted:
        signal.raise_signal(signal.SIGTERM)
        reached.append("went on")
        with pytest.raises(KeyboardInterrupt):
            noted.look()
        signal.raise_signal(signal.SIGTERM)
        noted.look()
        reached.append("ended in order")
    assert reached == ["went on", "ended in order"]


def test_one_that_nobody_looked_for_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), signals.noted():
        signal.raise_signal(signal.SIGINT)


def test_the_third_ends_at_once():
    with signals.noted() as noted:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        noted.heeded = True


def test_in_another_thread_nothing_changes():
    seen = []

    def inside():
        with signals.handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join(timeout=10)
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_process_under_nohup_goes_on_when_its_terminal_goes():
    script = (
        "import os, signal; from pcpo_ray import signals\nwith signals.handled(): os.kill(os.getpid(), signal.SIGHUP)"
    )
    command = ["nohup", sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, timeout=60, env={**os.environ}).returncode == 0
