"""Drawn faults and settings: which runs there are, what each of them is, and what happens to it. No Ray, no clock.

Drawn is in layers, so that nothing is left to luck that matters: every fault of the learner meets one rank, two of ddp
and two of fsdp2; every value of a setting is drawn twice at least for each of these; each other fault happens in some
run. Further runs have ranks that sample, alone (colocated) or beside samplers (hybrid); they die in sampling, and while
they prove their weights. Which values and faults meet in a run, and in which order, the seed says.
"""

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Any

SEED = 18
"""The seed of the runs that `make chaos` takes."""

SHAPES = [(1, "ddp"), (2, "ddp"), (2, "fsdp2")]
"""The learner's ranks and their strategy."""

RUNS_OF_A_SHAPE = 5

SPLIT_RUNS = len(SHAPES) * RUNS_OF_A_SHAPE

SAMPLERS_BESIDE = (0, 2)
"""How many samplers there are beside ranks that sample too."""

RUNS = SPLIT_RUNS + len(SHAPES) * len(SAMPLERS_BESIDE)

VALUES: dict[str, Sequence[Any]] = {
    "staleness": (0, 2),
    "sync": ("pull", "broadcast"),
    "train": ("{kind: lora, rank: 2, alpha: 2}", "{kind: full}"),
    "average": (None, 0.9),
    "stored": ("disk", "s3"),
}

Fault = tuple[str, ...]

ENDING = ("kill", "stop", "raise", "exit")

RECOVERING = ("load", "restore", "older")
"""Methods of a learner that takes over: with one of these faults, the learner before is killed first."""

LEARNER: list[Fault] = [
    *(("learner", method, kind) for method in ("hold", "update", "weights", "save") for kind in ENDING),
    *(("learner", method, kind) for method in ("load", "restore") for kind in ("kill", "raise")),
    ("learner", "older", "kill"),
    ("learner", "assist", "kill"),
    *(("learner", "send", kind) for kind in ("kill", "raise")),
    *(("node", "learner", how) for how in ("lost", "drained")),
]
"""Faults that a learner of every shape meets in which they can happen."""

RANKS: list[Fault] = [("learner", method, kind) for method in ("sample", "prove") for kind in ENDING]
"""Faults that ranks which sample meet, of every shape."""

OTHERS: list[Fault] = [
    *(("sampler", "sample", kind) for kind in (*ENDING, "refuse")),
    *(("sampler", "pull", kind) for kind in ("kill", "raise")),
    *(("sampler", "receive", kind) for kind in ("kill", "raise")),
    *(("scorer", "score", kind) for kind in (*ENDING, "refuse")),
    *(("driver", name) for name in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGUSR1")),
    *[("node", "samplers", "lost")] * 3,
    ("node", "samplers", "drained"),
    *[("storage", "away")] * 3,
]
"""Faults that some run meets, whatever the shape of its learner; one that stands here twice, in two runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run is drawn to be."""

    ranks: int
    strategy: str
    staleness: int
    sync: str
    train: str
    average: float | None
    stored: str
    samples: bool = False
    samplers: int = 2

    def allows(self, fault: Fault) -> bool:
        """Tell whether a fault can happen here."""
        match fault:
            case (_, "send" | "receive", _):
                return self.sync == "broadcast"
            case (_, "pull", _):
                return self.sync == "pull"
            case (_, "older", _):
                return self.staleness > 0
            case (_, "assist", _):
                return self.strategy == "fsdp2"
            case ("storage", _):
                return self.stored == "s3"
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """A run: its number among the drawn ones, its setting, and its faults in their order, no two alike."""

    number: int
    setting: Setting
    faults: tuple[Fault, ...]


def draws(seed: int = SEED) -> list[Draw]:
    """Draw all runs of a seed."""
    rng = random.Random(seed)
    settings = [setting for shape in SHAPES for setting in _settings(shape, rng)]
    faults: list[list[Fault]] = [[] for _ in settings]
    for shape in SHAPES:
        places = [place for place, one in enumerate(settings) if (one.ranks, one.strategy) == shape]
        _deal(LEARNER, places, settings, faults, rng)
    _deal(OTHERS, range(len(settings)), settings, faults, rng)
    for found in faults:
        rng.shuffle(found)
    for shape in SHAPES:
        drawn = _settings(shape, rng)
        places = range(len(settings), len(settings) + len(SAMPLERS_BESIDE))
        settings += [
            dataclasses.replace(setting, samples=True, samplers=samplers)
            for setting, samplers in zip(drawn, SAMPLERS_BESIDE, strict=False)
        ]
        faults += [[] for _ in SAMPLERS_BESIDE]
        _deal(RANKS, places, settings, faults, rng)
    return [
        Draw(number=number, setting=setting, faults=tuple(found))
        for number, (setting, found) in enumerate(zip(settings, faults, strict=True))
    ]


def _settings(shape: tuple[int, str], rng: random.Random) -> list[Setting]:
    """Draw the settings of one shape: of each key every value equally often, or once more."""
    columns = {}
    for name, values in VALUES.items():
        column = list(itertools.islice(itertools.cycle(rng.sample(values, len(values))), RUNS_OF_A_SHAPE))
        rng.shuffle(column)
        columns[name] = column
    ranks, strategy = shape
    rows = zip(*columns.values(), strict=True)
    return [Setting(ranks=ranks, strategy=strategy, **dict(zip(columns, row, strict=True))) for row in rows]


def _deal(
    dealt: Sequence[Fault],
    places: Sequence[int],
    settings: Sequence[Setting],
    faults: Sequence[list[Fault]],
    rng: random.Random,
) -> None:
    """Give each fault to the run that has fewest, of those in which it can happen; the choosy ones first."""
    allowed = {fault: [place for place in places if settings[place].allows(fault)] for fault in dealt}
    for fault in sorted(rng.sample(dealt, len(dealt)), key=lambda fault: len(allowed[fault])):
        free = [place for place in allowed[fault] if fault not in faults[place]]
        if free:
            faults[min(free, key=lambda place: (len(faults[place]), rng.random()))].append(fault)
