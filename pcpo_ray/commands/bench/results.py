"""Benchmark results as files, with machine and config, and the comparison of two files."""

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcpo_ray.commands.bench.rows import Row, spread
from pcpo_ray.config import Run
from pcpo_ray.errors import BenchError
from pcpo_ray.runs import lines


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One benchmark's rows; `config` is the digest of the measured run, `seconds` the benchmark's duration."""

    name: str
    config: str
    repeats: int
    seconds: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one command; `made` is the time, `source` the config's file and overrides."""

    made: str
    source: str
    machine: Mapping[str, Any]
    benches: tuple[Bench, ...] = ()


def begin(source: str) -> Results:
    """Make empty results for this machine and time."""
    return Results(made=time.strftime("%Y-%m-%dT%H:%M:%S%z"), source=source, machine=machine())


def machine() -> dict[str, Any]:
    """Describe the machine that figures depend on: processor, cores, device and versions."""
    from pcpo_ray.commands import session

    there = session.surroundings(local=False)
    return {
        "cpu": _cpu(),
        "cores": there["cores"],
        "device": there["device"],
        "versions": there["versions"],
    }


def _cpu() -> str:
    """Return the processor's model, as the kernel names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def digest(run: Run) -> str:
    """Hash everything in a config except the run's name."""
    from pcpo_ray.config import files

    data = {key: value for key, value in files.plain(run).items() if key != "name"}
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=8).hexdigest()


def write(results: Results, path: Path) -> None:
    """Write results atomically as JSON, with every repeat's raw numbers."""
    beside = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(
        json.dumps(lines.plain(dataclasses.asdict(results)), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    beside.replace(path)


def read(path: Path) -> Results:
    """Read what `write` wrote. Raises BenchError."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Results).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BenchError(f"no results at {path}; `pcpo-ray bench all --out {path}` writes some") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BenchError(f"{path} does not hold results of pcpo-ray bench: {where}: {first['msg']}") from None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A row in two files; `change` is the second's ratio, or figure, over the first's (`Row.judged`)."""

    bench: str
    first: Row
    second: Row

    @property
    def change(self) -> float | None:
        """The second value over the first; None if one was not measured or the first is 0."""
        if self.first.unmeasured or self.second.unmeasured:
            return None
        one, other = (spread(row.judged).median for row in (self.first, self.second))
        return other / one if one else None


def compare(first: Results, second: Results) -> list[Compared]:
    """Compare the rows of benchmarks in both results. Raises BenchError if they did not measure the same."""
    ours, theirs = ({bench.name: bench for bench in results.benches} for results in (first, second))
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise BenchError(
            f"the two files have no benchmark in common: {sorted(ours)} and {sorted(theirs)}; measure the same in both"
        )
    found = []
    for name in shared:
        one, other = ours[name], theirs[name]
        if one.config != other.config:
            raise BenchError(
                f"{name} was measured on two configs, digests {one.config} ({first.source}) and {other.config} "
                f"({second.source}); measure both on the same config and overrides"
            )
        rows, others = ({row.name: row for row in bench.rows} for bench in (one, other))
        if rows.keys() != others.keys():
            raise BenchError(
                f"{name} has rows in one file only: {sorted(rows.keys() ^ others.keys())}; measure both with the same "
                "version of pcpo_ray"
            )
        for row in rows.values():
            again = others[row.name]
            if (row.unit, row.limit) != (again.unit, again.limit):
                raise BenchError(
                    f"{name}, {row.name}: one file has {row.unit} against {row.limit!r}, the other {again.unit} "
                    f"against {again.limit!r}; measure both with the same version of pcpo_ray"
                )
            found.append(Compared(bench=name, first=row, second=again))
    return found
