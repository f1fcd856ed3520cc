"""report.html: one self-contained page on a run, for a reader who was not there.

It is made from the run folder alone, so it can be written at any time, also for a run that was cut short. The same
folder gives the same bytes.
"""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pcpo_ray import __version__
from pcpo_ray.commands.report import sections
from pcpo_ray.commands.report.verdict import verdict
from pcpo_ray.config import files
from pcpo_ray.runs.disk import replace
from pcpo_ray.runs.records import read_record

if TYPE_CHECKING:
    import jinja2


def template(name: str) -> "jinja2.Template":
    """Load a page's template from the package; all values it shows are escaped."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pcpo_ray.commands", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(number=number, duration=duration)
    return templates.get_template(name)


def write(folder: Path) -> Path:
    """Write folder/report.html and return its path. Raises RunError if there is no run, or its scores are gone."""
    record = read_record(folder)
    run = record.run
    page = template("report/page.html.j2").render(
        record=record,
        run=run,
        version=__version__,
        state=" ".join([sections.state(record), *(f"Left out are {text}." for text in record.damaged)]),
        evaluated=record.prompts,
        started=sections.started(record),
        verdict=verdict(record),
        pictures=sections.examples(record),
        rewards=sections.rewards(record),
        quality=sections.quality(record),
        timesteps=sections.timesteps(record),
        first_update=record.named("first_update")[:1],
        times=sections.times(record),
        idle=sections.idle(record),
        config=files.dump(run),
        command=shlex.join(["pcpo-ray", "train", f"runs/{run.name}/config.yaml", f"name={run.name}-again"]),
    )
    path = folder / "report.html"
    replace(path, page)
    return path


def number(value: float | None, sign: str = "") -> str:
    """Format a number with four significant digits, a missing one as a dash; `sign` "+" shows the plus too."""
    return "-" if value is None or not math.isfinite(value) else f"{value:{sign}#.4g}"


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
