"""The run of several benchmarks: each is shown when done, and written if a file was named."""

import dataclasses
import importlib
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pcpo_ray import config
from pcpo_ray.commands import free_names, session
from pcpo_ray.commands.bench import page, results
from pcpo_ray.config import files
from pcpo_ray.errors import BenchError, PcpoError


def command(
    names: Sequence[str], path: Path, overrides: Sequence[str], *, repeats: int, out: Path | None, console: Console
) -> results.Results:
    """Run benchmarks and return their results. Others continue after a failure; raises BenchError at the end."""
    if out is not None:
        free_names.check_free(out)
    run = files.load(path, overrides)
    session.check(run)
    found = results.begin(" ".join([str(path), *overrides]))
    page.head(found, console)
    failed: dict[str, PcpoError] = {}
    for name in names:
        try:
            one = bench(name, run, repeats, console)
        except PcpoError as error:
            failed[name] = error
            page.say(console, f"{name} failed: {error}")
            continue
        page.show(one, console)
        found = dataclasses.replace(found, benches=(*found.benches, one))
        if out is not None:  # after each benchmark, so that a later failure loses nothing
            results.write(found, out)
    if out is not None and found.benches:
        page.say(console, f"results: {out}")
    if failed:
        raise BenchError("; ".join(f"{name} failed: {error}" for name, error in failed.items()))
    return found


def bench(name: str, run: config.Run, repeats: int, console: Console) -> results.Bench:
    """Run one benchmark on its version of the config's run."""
    module = importlib.import_module(f"pcpo_ray.commands.bench.{name}")
    measured_on = module.measured_on(run) if hasattr(module, "measured_on") else run
    started = time.perf_counter()
    rows = tuple(module.measure(measured_on, repeats, lambda line: page.say(console, f"{name}: {line}")))
    return results.Bench(
        name=name,
        config=results.digest(measured_on),
        repeats=max(len(row.figures) for row in rows),  # counted figures need no second repeat
        seconds=time.perf_counter() - started,
        rows=rows,
    )
