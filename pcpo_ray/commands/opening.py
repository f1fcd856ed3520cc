"""A run's folder opened for writing: made for a new run, or checked against the config and continued."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pcpo_ray import config
from pcpo_ray.commands.resuming import PLACES, SHOWN, free_to_change
from pcpo_ray.config.files import differing
from pcpo_ray.errors import AlarmError, RunError
from pcpo_ray.runs.configs import read
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.training import inputs, monitors
from pcpo_ray.training.recorder import Recorder, check_never_saved


def create(home: RunFolder, run: config.Run, say: Callable[[str], None]) -> Recorder:
    """Make a new run's folder and its recorder; an interrupt leaves nothing behind. Raises RunError if it exists."""
    began = inputs.digests(inputs.of_run(run))
    home = home.claim_new(say)
    there = home.local.exists()
    try:
        return Recorder.create(home, run, began=began)
    except KeyboardInterrupt:
        if not there and home.local.exists():
            home.discard()
        raise


def resume(home: RunFolder, run: config.Run, say: Callable[[str], None]) -> tuple[Recorder, int | None]:
    """Return the recorder of a run to continue, and the step of its newest checkpoint (None if it has none yet).

    Raises RunError if there is no such run, if another process of this machine is writing it, if its config or a file
    it reads has changed, or if it has done more steps than it is to have. Raises AlarmError if its monitors ended it
    and are still the same.
    """
    home = home.take_over(say)
    folder = home.local
    changed = changes(folder, run, free=free_to_change(run))
    if changed.config or changed.files:
        detail = [f"another config: {_some(changed.config)}"] if changed.config else []
        detail += [f"other files: {_some(changed.files)}"] if changed.files else []
        raise RunError(
            f"{home.place} was started with {' and '.join(detail)}; put it back as it was, or start under another name"
        )
    alarm = monitors.ending(folder)
    if alarm and read(folder).monitors == run.monitors:
        raise AlarmError(alarm)
    if inputs.read(folder) is None:
        say(f"{home.place} has no inputs.json: whether its prompts, model and rewards are as they were is not known")
    for text in changed.own:
        say(f"{text}; it goes on with it as it is now")
    if not (steps := home.steps()) or steps[-1] > run.steps:  # before a process that may write it has to stop
        _check_newest(home, run, home.newest(lambda line: None))
    home = home.claim()
    found = home.newest(say)
    home.catch_up()
    _check_newest(home, run, found)
    if found is None:
        say(f"{home.place} has no checkpoint yet: starting from step 0")
    recorder = Recorder.reopen(home, run, -1 if found is None else found)
    for text in recorder.repaired:
        say(text)
    if changed.own:
        recorder.event("code_changed", changed=changed.own)
    return recorder, found


def _check_newest(home: RunFolder, run: config.Run, found: int | None) -> None:
    """Check that a run can continue from the step of its newest checkpoint, or start over. Raises RunError."""
    if found is None:
        check_never_saved(home)
    elif found > run.steps:
        raise RunError(
            f"{home.place} has done {found} steps, and steps is {run.steps}: there is nothing to train; give more than "
            f"{found}, as in steps={found + run.steps}, or leave out --resume and give another name"
        )


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Messages on what changed since a run began: its config, the files it reads, the user's own code."""

    config: Sequence[str]
    files: Sequence[str]
    own: Sequence[str]


def changes(folder: Path, run: config.Run, *, free: Sequence[str], known: dict[Path, str] | None = None) -> Changes:
    """Compare `run` with the run in a folder, except for the keys in `free`. A file that moved is no change.

    `known` holds digests of files that need not be computed again.
    """
    began, files = inputs.read(folder) or {}, inputs.of_run(run)
    now = inputs.digests(files, known)
    moved = {key for key in began.keys() & now.keys() if not inputs.is_code(key)}
    of_config = differing(dataclasses.asdict(read(folder)), dataclasses.asdict(run))
    ignored = tuple(f"{key}." for key in (*free, *PLACES))
    found = list(inputs.changed(began, files, now))
    return Changes(
        config=[
            f"{key} {text}" for key, text in of_config.items() if key not in moved and not f"{key}.".startswith(ignored)
        ],
        files=[text for key, text in found if not inputs.is_own(key)],
        own=[text for key, text in found if inputs.is_own(key)],
    )


def changed_inputs(folder: Path, files: inputs.Files) -> list[str]:
    """Return a message for each of these files that is not what the run in a folder began with."""
    return [text for _, text in inputs.changed(inputs.read(folder) or {}, files, inputs.digests(files))]


def _some(texts: Sequence[str]) -> str:
    """Join the first of the texts, and say how many more there are."""
    more = [f"{len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return "; ".join([*texts[:SHOWN], *more])
