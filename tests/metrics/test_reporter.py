"""A reporter hands an exporter what there is to tell, when there is something new."""

import pytest

from pcpo_ray.metrics import reporter
from pcpo_ray.metrics.reporter import ExportingReporter
from tests.support.measures import NUMBERS, STEP, Kept, with_done


def test_totals_of_a_status_become_growth_every_few_seconds():
    now, kept = [100.0], Kept()
    told = ExportingReporter("r", kept, now=lambda: now[0])
    told.status(NUMBERS)
    assert kept["tasks", {"role": "samplers", "outcome": "done", "reason": "none"}] == 7
    assert kept["workers_ready", {"role": "samplers"}] == 1 and kept["in_flight"] == 5
    more = with_done(9, in_flight=2)
    calls = kept.calls
    for _ in range(100):
        told.status(more)
    assert kept.calls == calls and kept["in_flight"] == 5
    now[0] += reporter.REFRESH
    told.status(more)
    assert kept["tasks", {"role": "samplers", "outcome": "done", "reason": "none"}] == 9
    assert kept["tasks", {"role": "samplers", "outcome": "lost", "reason": "died"}] == 1
    assert kept["tasks", {"role": "samplers", "outcome": "lost", "reason": "images_gone"}] == 2
    assert kept["restarts", {"role": "samplers", "cause": "died"}] == 1 and kept["in_flight"] == 2


@pytest.mark.parametrize("end", [lambda told: told.record(STEP), lambda told: told.close()])
def test_the_last_status_before_a_step_or_the_end_is_not_lost(end):
    kept = Kept()
    told = ExportingReporter("r", kept, now=lambda: 0.0)
    told.status(NUMBERS)
    told.status(with_done(30))
    end(told)
    assert kept["tasks", {"role": "samplers", "outcome": "done", "reason": "none"}] == 30


def test_an_exporter_that_fails_is_told_of_once_and_ends_no_run():
    class Broken(Kept):
        def apply(self, run, changes):
            raise UnicodeEncodeError("ascii", "д", 0, 1, "ordinal not in range(128)")

    said = []
    told = ExportingReporter("r", Broken(), now=lambda: 0.0, say=said.append)
    told.status(NUMBERS)
    told.record(STEP)
    told.close()
    (line,) = said
    assert line.startswith("metrics are shown no more") and "UnicodeEncodeError" in line
