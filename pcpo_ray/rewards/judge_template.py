"""The question to a judge and how its answers are read: a YAML file, shipped in judging/ or one's own.

mode         yes_no, score or pairwise
text         the question, with {prompt} where the image's prompt is to stand
system       the system's message; none if left out
pattern      a regular expression whose group `value` is the number (score) or the better image, 1 or 2 (pairwise);
             with a group `of`, the number is value / of. It must match whole lines; the last one that it matches
             counts. Asterisks, with which models write bold, are left out of the answer before.
matches      numbers that an answer must have, of which the mean counts; 1 if left out. With a group `name`, they must
             have different names.
low, high    the scale of the numbers, which becomes 0..1 (score)
max_tokens   the longest answer; 512 if left out
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from pcpo_ray.config import files
from pcpo_ray.config.base import config
from pcpo_ray.errors import ConfigError, RewardError, nearest

SHIPPED = Path(__file__).parent / "judging"

DEFAULTS: Mapping[str, str] = {"yes_no": "question", "score": "unified_reward_2", "pairwise": "better"}
"""The template of each mode for a config that names none."""


@config
class Template:
    """One file's contents. Raises ValueError for what its mode cannot use."""

    mode: Literal["yes_no", "score", "pairwise"]
    text: str
    system: str | None = None
    pattern: str | None = None
    matches: int = 1
    low: float | None = None
    high: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if "{prompt}" not in self.text:
            raise ValueError("text has no {prompt}, so the judge would not know what the image should show")
        if self.mode == "yes_no":
            unused = (self.pattern, self.low, self.high, self.max_tokens)
            if unused != (None,) * len(unused) or self.matches != 1:
                raise ValueError("mode yes_no reads one token's probabilities; leave out all but text and system")
            return
        try:
            groups = re.compile(self.pattern or "").groupindex
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        if "value" not in groups:
            raise ValueError(f"pattern is {self.pattern!r}; expected a regular expression with a group (?P<value>...)")
        scaled = self.low is not None and self.high is not None and self.low < self.high
        if self.mode == "score" and not (scaled and self.matches >= 1):
            raise ValueError(f"low is {self.low} and high {self.high}; mode score expects low < high, and matches >= 1")
        if self.mode == "pairwise" and (self.low, self.high, self.matches) != (None, None, 1):
            raise ValueError("mode pairwise has no scale; leave out low, high and matches")

    @cached_property
    def found(self) -> "re.Pattern[str]":
        """The compiled pattern."""
        return re.compile(self.pattern or "", re.IGNORECASE)

    def asked(self, prompt: str) -> str:
        """Write the question for a prompt."""
        return self.text.replace("{prompt}", prompt).strip()

    def _lines(self, answer: str) -> list["re.Match[str]"]:
        """Find the lines of an answer that the pattern matches as a whole."""
        lines = (self.found.fullmatch(line.strip()) for line in answer.replace("*", "").splitlines())
        return [match for match in lines if match is not None]

    def number(self, answer: str) -> float | None:
        """Read the number in an answer, as 0..1; None if it is not there or off the scale."""
        assert self.low is not None and self.high is not None
        matches = self._lines(answer)[-self.matches :]
        names = {match.groupdict().get("name", place) for place, match in enumerate(matches)}
        if len(names) < len(matches):
            return None
        try:
            values = [float(match["value"]) / float(match.groupdict().get("of") or 1) for match in matches]
        except (ValueError, ZeroDivisionError):
            return None
        if len(values) < self.matches or not all(self.low <= value <= self.high for value in values):
            return None
        return (sum(values) / len(values) - self.low) / (self.high - self.low)

    def better(self, answer: str) -> int | None:
        """Read which of two images is better, 0 or 1; None if the answer does not say."""
        matches = self._lines(answer)
        return {"1": 0, "2": 1}.get(matches[-1]["value"]) if matches else None


def read(mode: str, name: str | None) -> Template:
    """Read a template: a shipped one's name, a file, or the mode's own for None. Raises RewardError."""
    wanted = DEFAULTS[mode] if name is None else name
    path = SHIPPED / f"{wanted}.yaml" if "/" not in wanted and not wanted.endswith(".yaml") else Path(wanted)
    shipped = sorted(found.stem for found in SHIPPED.glob("*.yaml"))
    if not path.is_file():
        raise RewardError(
            f"template {wanted!r} of the reward judge is not there{nearest(wanted, shipped)}; expected a YAML file, or "
            f"one of {', '.join(shipped)}"
        )
    try:
        template: Template = TypeAdapter(Template).validate_python(files.read(path))
    except (ValidationError, ConfigError) as error:
        raise RewardError(f"template {path} of the reward judge cannot be used: {error}") from None
    if template.mode != mode:
        raise RewardError(f"template {path} is for mode {template.mode}, and the judge's mode is {mode}; change one")
    return template
