"""A number says as much as is known of it."""

import math

import pytest

from pcpo_ray.commands.report import numbers
from pcpo_ray.runs.intervals import Estimate


@pytest.mark.parametrize(
    ("mean", "low", "high", "shown", "bounds"),
    [
        (0.07031, 0.007812, 0.1328, "+0.07", "+0.01 to +0.13"),
        (0.031234, 0.021111, 0.041222, "+0.031", "+0.021 to +0.041"),
        (-0.0009240, -0.00161, -0.000212, "\u22120.0009", "\u22120.0016 to \u22120.0002"),
        (12.3456, -80.0, 104.0, "+12", "\u221280 to +104"),
        (0.0001, -0.0996, 0.0001, "0.00", "\u22120.10 to 0.00"),
    ],
)
def test_a_change_has_two_significant_digits_of_its_intervals_width(mean, low, high, shown, bounds):
    found = Estimate(mean=mean, low=low, high=high)
    assert numbers.signed(found.mean, numbers.places_of(found)) == shown
    assert numbers.interval(found) == bounds


def test_no_interval_gives_three_digits_and_no_number_a_dash():
    alone = Estimate(mean=0.123456, low=math.nan, high=math.nan)
    assert numbers.places_of(alone) is None and numbers.interval(alone) == ""
    assert numbers.number(alone.mean) == "0.123"
    assert (numbers.number(None), numbers.number(math.nan)) == ("-", "-")
    assert [numbers.number(value) for value in (0, 1234.5, -2.0, 1e-9)] == ["0", "1234", "\u22122.00", "1.00e\u221209"]


def test_what_rounds_to_nothing_has_no_sign():
    assert numbers.signed(-0.0001, 2) == numbers.signed(0.0001, 2) == "0.00"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (0.0192, "<0.1 s"), (3.14, "3.1 s"), (62.5, "62 s"), (600, "10 min"), (36000, "10.0 h")],
)
def test_a_duration_is_as_exact_as_one_reads_it(seconds, shown):
    assert numbers.duration(seconds) == shown


@pytest.mark.parametrize(("share", "shown"), [(0, "0%"), (0.0001, "<0.1%"), (0.034, "3.4%"), (0.666, "67%")])
def test_a_share_is_in_per_cent(share, shown):
    assert numbers.percent(share) == shown
