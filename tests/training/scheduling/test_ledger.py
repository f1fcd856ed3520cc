"""Each task once: issued, done, taken."""

import pytest

from pcpo_ray.errors import TrainingError
from pcpo_ray.training.scheduling.ledger import Ledger


def test_results_come_in_the_order_asked_for_and_once():
    ledger = Ledger()
    for key in "abc":
        ledger.issue(key)
    for key in "cab":
        ledger.done(key, key.upper())
    assert ledger.missing("abcd") == {"d"} and len(ledger) == 0
    assert ledger.take("abc") == ["A", "B", "C"]
    with pytest.raises(TrainingError, match="1 of 1 tasks asked for are not done, a"):
        ledger.take("a")


def test_nothing_is_issued_or_done_twice():
    ledger = Ledger()
    ledger.issue("a")
    with pytest.raises(TrainingError, match="a was issued twice"):
        ledger.issue("a")
    ledger.done("a", 1)
    with pytest.raises(TrainingError, match="a was issued twice"):
        ledger.issue("a")
    with pytest.raises(TrainingError, match="a finished and is not in flight"):
        ledger.done("a", 2)


def test_what_was_forgotten_may_be_issued_again():
    ledger = Ledger()
    ledger.issue("a")
    ledger.issue("b")
    ledger.done("b", 1)
    ledger.forget()
    ledger.issue("a")
    ledger.issue("b")
    assert len(ledger) == 2 and ledger.missing("ab") == {"a", "b"}
