"""All errors that the package raises on purpose.

    PcpoError
    ├── ConfigError        a key, type or value of a config, found before anything is loaded
    ├── PromptError        a prompt file, a prompt, or a prompt source of the user's own
    ├── ScheduleError      timesteps that a noise schedule cannot give
    ├── CreditError        a credit that the schedule cannot carry
    ├── ModelError         a model's folder, its parts or its weights
    ├── RewardError        a reward that cannot be built, or that failed too often
    ├── QualityError       a feature model or a reference set of the evaluation's quality
    ├── CheckpointError    a checkpoint that is cut short or belongs to another run
    ├── RunError           a run folder
    │   ├── TakenOverError    another process writes the run now
    │   └── AwayError         storage that does not answer for now
    ├── StudyError         a study's arms, seeds or stored runs
    ├── BenchError         a benchmark that failed, or results that cannot be compared
    ├── WeightsError       weights that did not arrive as they were sent
    ├── ClusterError       a worker, a deadline or resources of the cluster
    │   ├── LearnerLostError    the learner's processes
    │   ├── RolloutsLostError   trajectories or images, with the node that held them
    │   └── EndedError          a run that one talks to, and that has ended
    ├── TrainingError      an update that must not go on
    └── AlarmError         a run that its monitors ended

Each is built from one message (so that it survives pickling between processes) which says what was got, what was
expected and what to do.
"""

import difflib
import re
from collections.abc import Iterable, Sequence


class PcpoError(Exception):
    """Root of the tree; the command line prints its message without a traceback."""


class ConfigError(PcpoError):
    """A key, type or value of a config."""


class PromptError(PcpoError):
    """A prompt file or a prompt."""


class ScheduleError(PcpoError):
    """Timesteps that a noise schedule cannot give."""


class CreditError(PcpoError):
    """A credit that the schedule cannot carry."""


class ModelError(PcpoError):
    """A model's folder, its parts or its weights."""


class RewardError(PcpoError):
    """A reward that cannot be built, or that failed too often."""


class QualityError(PcpoError):
    """A feature model or a reference set of the evaluation's quality."""


class CheckpointError(PcpoError):
    """A checkpoint that is cut short or belongs to another run."""


class RunError(PcpoError):
    """A run folder that exists, is missing or cannot be written."""


class TakenOverError(RunError):
    """Another process has resumed the run, and writes it now."""


class AwayError(RunError):
    """Storage that does not answer, or is too busy to: what was asked of it may be asked again."""


class StudyError(PcpoError):
    """Arms that cannot be compared, runs of a study that are missing, or were made otherwise."""


class BenchError(PcpoError):
    """A benchmark that failed, or results that cannot be read or compared."""


class WeightsError(PcpoError):
    """Weights that did not arrive as they were sent."""


class ClusterError(PcpoError):
    """A worker, a deadline or resources of the cluster."""


class TrainingError(PcpoError):
    """An update that must not go on."""


class AlarmError(PcpoError):
    """A run that its monitors ended."""


class StopAskedError(KeyboardInterrupt):
    """A run that was asked to stop while its workers, or a new learner, started.

    It ends as by Ctrl-C, but its command has succeeded. No `PcpoError`, as nothing is wrong; KubeRay, say,
    would start a failed job again.
    """


class LearnerLostError(ClusterError):
    """The learner is gone, and with it all that it learned since the newest checkpoint."""


class RolloutsLostError(ClusterError):
    """Trajectories or images are gone with their node. `places` are the groups of a batch that was to be learned."""

    def __init__(self, message: str, places: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.places = tuple(places)


class EndedError(ClusterError):
    """The run has ended; its controller ended with it."""


# -- words of messages -------------------------------------------------------------------------------------------------

BEGINNING = 3
"""Letters from which on the beginning of a name stands for it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Give ` (did you mean 'x'?)` for the known name that is closest to `word`, or nothing if none is close."""
    found = nearest_name(word, known)
    return f" (did you mean {found!r}?)" if found else ""


def nearest_name(word: str, known: Iterable[str], *, least: float = 0.6) -> str | None:
    """Find the known name that `word` begins, that is closest to it, or that it abbreviates, as lr does learning_rate.

    A name counts as close from a similarity of `least` on, of at most 1.
    """
    names = list(known)
    if begun := begun_by(word, names):
        return min(begun, key=len)
    close = difflib.get_close_matches(word, names, n=1, cutoff=least)
    return close[0] if close else next((name for name in names if _initials(name) == word.lower()), None)


def begun_by(word: str, known: Iterable[str]) -> list[str]:
    """List the known names that `word` begins, if it is long enough to tell them from others."""
    return [name for name in known if len(word) >= BEGINNING and name.lower().startswith(word.lower())]


def _initials(name: str) -> str | None:
    parts = [part for part in re.split(r"[_.]", name) if part]
    return "".join(part[0] for part in parts) if len(parts) > 1 else None
