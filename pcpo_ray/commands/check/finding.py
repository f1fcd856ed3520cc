"""One line of the check: what was tried, how it went, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Verdict = Literal["passed", "failed", "not applicable"]

MARGIN = max(map(len, get_args(Verdict))) + 1
"""Columns of the verdict, to the left of what is said."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A try of one part of the run; `remedy` says what to do where it failed."""

    part: str
    tried: str
    verdict: Verdict
    detail: str = ""
    remedy: str = ""

    @property
    def line(self) -> str:
        """The finding in one line."""
        lines = [" ".join(line.split()) for text in (self.detail, self.remedy) for line in text.splitlines()]
        told = "; ".join(filter(None, lines)).replace(":; ", ": ")
        return f"{self.verdict:<{MARGIN}}{self.part}: {self.tried}" + (f": {told}" if told else "")


def judged(part: str, tried: str, right: bool, detail: str, remedy: str) -> Finding:
    """Make a finding that passed or failed; the remedy is for a failure."""
    verdict: Verdict = "passed" if right else "failed"
    return Finding(part=part, tried=tried, verdict=verdict, detail=detail, remedy="" if right else remedy)


def failures(findings: Sequence[Finding]) -> int:
    """Count the findings that failed."""
    return sum(finding.verdict == "failed" for finding in findings)
