"""`pcpo-ray report`: writes a run's page, with --watch again and again until the run has ended."""

import time
from collections.abc import Callable

from pcpo_ray.commands.report import sections
from pcpo_ray.commands.report.page import write
from pcpo_ray.runs import configs, records, writer
from pcpo_ray.runs.folder import LocalFolder, RunFolder
from pcpo_ray.runs.places import folder_at

EVERY, EVERY_STORED = 5.0, 30.0
"""Seconds from one look at a run's records to the next: on a disk, and in object storage."""

GROWING = ("metrics.jsonl", "events.jsonl")
"""The files that show that a run has gone on."""


def report(place: str, *, watch: bool, say: Callable[[str], None], pause: Callable[[float], None] = time.sleep) -> None:
    """Write the page of the run at a path or URL. Raises RunError if there is no run."""
    home = folder_at(place)
    every = EVERY if isinstance(home, LocalFolder) else EVERY_STORED
    seen: object = None
    while True:
        with home.fetched(records=True) as here:
            configs.read(here.local)
            going = watch and _is_going(here)
            size = [path.stat().st_size if (path := here.local / name).is_file() else 0 for name in GROWING]
            if (size, going) != seen:
                written = here.put(write(here.local, refresh=every if going else None))
                if seen is None:
                    say(f"report: {written}")
                    if going:
                        say(f"the run goes on; the page is written again every {every:g} s at most, until it ends")
                seen = (size, going)
        if not going:
            break
        pause(every)
    if watch:
        say(_ending(home))


def _is_going(home: RunFolder) -> bool:
    """Return whether a run may still write to its folder."""
    return not sections.ended(records.read_record(home.local)) and not writer.is_gone(home.local)


def _ending(home: RunFolder) -> str:
    with home.fetched(records=True) as here:
        return sections.state(records.read_record(here.local))
