"""A study's file, and the runs that it asks for."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len

from pcpo_ray import config
from pcpo_ray.commands.study import axes
from pcpo_ray.commands.study.statistics import MOST
from pcpo_ray.config import NUMBER, NonNegativeInt, Positive, files, recipes
from pcpo_ray.errors import ConfigError, StudyError

RATE = "optimizer.learning_rate"


@config.config
class Arm:
    """Its config keys `a.b.c` and their values, beside the study's.

    It is compared with the arm `against` (null: the first one), to which it must be equal in every key of the config,
    and in what follows from several (axes.DERIVED), but those it `varies`; a block's name stands for all of its keys.
    A learning rate that the study searches for is each arm's own. `seed_offset` is added to its runs' seeds: equal arms
    that are to differ by chance alone.
    """

    set: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None
    varies: tuple[str, ...] = ()
    seed_offset: NonNegativeInt = 0


@config.config
class Search:
    """Every arm is trained at each of the same learning rates, on seeds of its own.

    An arm keeps the rate with the highest evaluated reward, averaged over the evaluations after the start and over the
    seeds; of equal ones the lowest.
    """

    rates: Annotated[tuple[Positive, ...], Len(2)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Len(1)]


@config.config
class Targets:
    """Evaluated rewards that arms take some number of updates to reach.

    `gain`: above the first arm's reward before training, at the same seed. `level`: the reward itself.
    """

    kind: Literal["gain", "level"] = "gain"
    values: Annotated[tuple[Annotated[float, NUMBER], ...], Len(1)]


@config.config
class Study:
    """Arms x seeds. `base` is a run's config, the path of one from the study's file, or a recipe's name.

    `set` changes it for all arms. Without `targets` arms are compared by their rewards at the end only.
    """

    name: str
    question: str = ""
    base: str | Mapping[str, Any]
    set: Mapping[str, Any] = field(default_factory=dict)
    arms: Annotated[Mapping[str, Arm], Len(2)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Len(2, MOST)]
    targets: Targets | None = None
    search: Search | None = None

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; expected one folder name, without slashes or a leading dot")
        searched = () if self.search is None else self.search.seeds
        for where, seeds in (("seeds", self.seeds), ("search.seeds", searched)):
            if len(set(seeds)) != len(seeds):
                raise ValueError(f"{where} names a seed twice: {list(seeds)}")
        if both := sorted({*self.seeds} & {*searched}):
            raise ValueError(f"search.seeds has seeds of the study itself: {both}; search on others")
        if self.search is not None:
            arms = [name for name, arm in self.arms.items() if RATE in arm.set]
            if arms or RATE in self.set:
                raise ValueError(f"{RATE} is set by {arms or 'the study'} and searched for; do one of them")
        for where, keys in (("set", self.set), *((f"arms.{name}.set", arm.set) for name, arm in self.arms.items())):
            if own := sorted({"name", "seed"} & {*keys}):
                raise ValueError(f"{where} sets {own}, which a study gives each run itself (seeds, seed_offset)")
            try:
                files.check_overrides(files.as_overrides(keys))
            except ConfigError as error:
                raise ValueError(f"{where}: {error}") from None
        seen: list[str] = []
        for name, arm in self.arms.items():
            if not name or Path(name).name != name or name.startswith("."):
                raise ValueError(f"arms has the name {name!r}; expected one folder name, without slashes")
            if arm.against is not None and arm.against not in seen:
                raise ValueError(f"arms.{name}.against is {arm.against!r}; expected an arm above it, of {seen}")
            if not seen and arm.varies:
                raise ValueError(f"arms.{name} is the first and has nothing to vary from; leave out varies")
            seen.append(name)

    @property
    def first(self) -> str:
        return next(iter(self.arms))

    def against(self, name: str) -> str | None:
        """The arm that this one is compared with; None for the first."""
        return None if name == self.first else self.arms[name].against or self.first


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of a study; `rate` is a candidate of the search."""

    arm: str
    seed: int
    run: config.Run
    rate: float | None = None


def load(path: Path) -> Study:
    """Read the study in a YAML file, or a shipped one by its name, with its base in full. Raises ConfigError."""
    path = recipes.located(path)
    data = files.read(path)
    if "model" in data and "arms" not in data:
        raise ConfigError(f"{path} is a run's config, and no study; train it with: pcpo-ray train {path}")
    study = files.parse_as(Study, data, source=str(path))
    if isinstance(study.base, str):
        named = study.base in recipes.names() and not (path.parent / study.base).exists()
        study = replace(study, base=files.read(study.base if named else path.parent / study.base))
    return study


def planned(study: Study, arm: str, seed: int, *, rate: float | None = None, searching: bool = False) -> Planned:
    """An arm's run. With `searching` it is one of the search's. Raises ConfigError that names the arm."""
    data = copy.deepcopy(dict(study.base)) if isinstance(study.base, Mapping) else {}
    name = f"{study.name}-{arm}" + (f"-rate{rate:g}" if searching else "") + f"-seed{seed}"
    chosen = {} if rate is None else {RATE: rate}
    own = {"name": name, "seed": seed + study.arms[arm].seed_offset}
    for override in files.as_overrides({**study.set, **study.arms[arm].set, **chosen, **own}):
        files.set_key(data, override)
    run = files.parse(data, source=f"study {study.name}, arm {arm}")
    return Planned(arm=arm, seed=seed, run=run, rate=rate if searching else None)


def search_runs(study: Study) -> list[Planned]:
    """List the runs of the search, if there is one, arm by arm."""
    if study.search is None:
        return []
    return [
        planned(study, arm, seed, rate=rate, searching=True)
        for arm in study.arms
        for rate in study.search.rates
        for seed in study.search.seeds
    ]


def main_runs(study: Study, rates: Mapping[str, float]) -> list[Planned]:
    """Every arm at every seed, seed by seed; `rates` are what the search chose, empty where there is none."""
    return [planned(study, arm, seed, rate=rates.get(arm)) for seed in study.seeds for arm in study.arms]


def check(study: Study) -> None:
    """See that every arm can start and that arms which are compared are equal where they must be.

    Raises the PcpoError of what is wrong, StudyError where two arms are unequal.
    """
    from pcpo_ray.commands import session

    found = {}
    for arm in study.arms:
        found[arm] = planned(study, arm, study.seeds[0]).run
        try:
            session.check(found[arm])
        except ConfigError as error:
            raise ConfigError(f"study {study.name}, arm {arm}: {error}") from None
    for arm, other in compared(study):
        wrong = list(_wrong(arm, other, found, study.arms[arm].varies))
        if wrong:
            raise StudyError("\n".join([f"study {study.name}: arm {arm} cannot be compared with {other}:", *wrong]))


def compared(study: Study) -> list[tuple[str, str]]:
    """Every arm but the first, and the arm that it is compared with."""
    return [(arm, other) for arm in study.arms if (other := study.against(arm)) is not None]


def _wrong(arm: str, other: str, found: Mapping[str, config.Run], varies: tuple[str, ...]) -> Iterator[str]:
    different = axes.differing(found[arm], found[other])
    for key, (one, two) in different.items():
        if not any(axes.covers(declared, key) for declared in varies):
            yield (
                f"  {key}: {arm} has {one}, {other} has {two}; make them equal, or, if the study is about that, write "
                f"`varies: [{key}]` under the arm"
            )
    for declared in varies:
        if not any(axes.covers(declared, key) for key in different):
            why = axes.unknown(declared, (found[arm], found[other])) or "the same in both; leave it out there"
            yield f"  {declared}: under `varies`, but {why}"
