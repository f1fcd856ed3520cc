"""A study's runs, several at a time: each a `pcpo-ray train` with a log of its own, so that one's end is only its own.

RUNS/<study>/study.yaml   the study, its base in full    configs/<run>.yaml   what each run was started with
             <run>/       the runs' folders              logs/<run>.log       what each of them said

The same call again keeps the runs that are whole and goes on with those that were begun.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from rich.console import Console

from pcpo_ray import config
from pcpo_ray.commands import wrapped
from pcpo_ray.commands.study import page, plan, results, table
from pcpo_ray.commands.study.plan import Planned, Study
from pcpo_ray.config import files
from pcpo_ray.errors import StudyError
from pcpo_ray.process.signals import ended
from pcpo_ray.runs.disk import writing

LOOK = 0.2
"""Seconds from one look at the runs under way to the next."""

ENDING = 600.0
"""Seconds in which an interrupted run must have ended its update and saved."""

FAILURE = re.compile(r"(?:error: |\S+ \S+ ERROR +failed: )(.*)")
"""A log's line that tells why its run failed."""


@dataclass(frozen=True, kw_only=True)
class Going:
    """A run under way."""

    planned: Planned
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float


class Runner:
    """Makes a study's runs. `say` gets a line for each that begins or ends."""

    def __init__(self, study: Study, folder: Path, *, local: bool, jobs: int, say: Callable[[str], None]) -> None:
        self.study = study
        self.folder = folder
        self.local = local
        self.jobs = jobs
        self.say = say

    def run(self) -> None:
        """All of the study's runs: the search's, then the arms'.

        Raises StudyError where stored runs are of other arms, before any begins; and, once all others have ended,
        where some failed. A KeyboardInterrupt ends those under way after their update, with a checkpoint.
        """
        search = plan.search_runs(self.study)
        results.check_stored(self.study, self.folder, search)
        with writing(self.folder):
            for name in ("configs", "logs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        path = self.folder / "study.yaml"
        with writing(path):
            path.write_text(files.dump(self.study), encoding="utf-8")
        self._make(search)
        rates = results.chosen(self.study, self.folder)
        main = plan.main_runs(self.study, rates)
        results.check_stored(self.study, self.folder, main)
        self._make(main)

    def _make(self, wanted: Sequence[Planned]) -> None:
        waiting = deque(one for one in wanted if not results.finished(self.folder / one.run.name, one.run))
        total, done = len(wanted), len(wanted) - len(waiting)
        if done:
            self.say(f"{done} of {total} runs are there already")
        going: list[Going] = []
        failed: list[str] = []
        try:
            while waiting or going:
                while waiting and len(going) < self.jobs:
                    going.append(self._start(waiting.popleft()))
                time.sleep(LOOK)
                for one in [one for one in going if one.process.poll() is not None]:
                    going.remove(one)
                    done += 1
                    seconds = time.monotonic() - one.started
                    trouble = self._ended(one)
                    failed += trouble
                    self.say(
                        f"{done}/{total} {one.planned.run.name}: {'FAILED' if trouble else 'done'} in {seconds:.0f} s"
                    )
        finally:
            self._end(going)
        if failed:
            raise StudyError("\n".join([f"{len(failed)} of {total} runs failed; fix that and start again:", *failed]))

    def _start(self, planned: Planned) -> Going:
        name = planned.run.name
        path = self.folder / "configs" / f"{name}.yaml"
        with writing(path):
            path.write_text(files.dump(planned.run), encoding="utf-8")
        log = (self.folder / "logs" / f"{name}.log").open("ab")
        words = ["train", str(path), "--runs", str(self.folder), "--resume-if-started"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pcpo_ray.commands.app", *words, *(["--local"] if self.local else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads(planned.run)), **os.environ},
            start_new_session=True,  # Ctrl-C reaches it through `_end` alone: a second one would cut its saving short
        )
        return Going(planned=planned, process=process, log=log, started=time.monotonic())

    def _ended(self, one: Going) -> list[str]:
        """Describe the failure of a run that has ended."""
        one.log.close()
        name = one.planned.run.name
        if one.process.returncode == 0 and results.finished(self.folder / name, one.planned.run):
            return []
        path = self.folder / "logs" / f"{name}.log"
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        errors = [
            f"error: {found[1]}" for line in lines if (found := FAILURE.match(line))
        ]  # other lines may come later
        last = (errors or lines or ["it said nothing"])[-1]
        return [f"  {name}, exit status {one.process.returncode}: {last} (all of it: {path})"]

    def _end(self, going: Sequence[Going]) -> None:
        """Have runs that are under way end after their update."""
        for one in going:
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + ENDING
        for one in going:
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.say(f"{one.planned.run.name} has not ended {ENDING:.0f} s after it was told to: it is killed")
                one.process.kill()
                one.process.wait()
            one.log.close()


def threads(run: config.Run) -> int:
    """Return the most threads that a run in one process computes with."""
    return max(role.threads for role in (run.workers.samplers, run.workers.scorers, run.workers.learner))


def default_jobs(study: Study, *, local: bool) -> int:
    """Return the number of parallel runs: as many as there are cores for, one if a GPU or Ray computes."""
    import torch

    if not local or torch.cuda.is_available():
        return 1
    most = max(threads(plan.planned(study, arm, study.seeds[0]).run) for arm in study.arms)
    return max(1, len(os.sched_getaffinity(0)) // most)


def command(
    paths: Sequence[Path], runs: Path, *, local: bool, jobs: int | None, report_only: bool, console: Console
) -> None:
    """`pcpo-ray study`: of one study after the other, make the runs that are wanting, then the table and the page.

    Raises the PcpoError of any study before the first begins.
    """
    studies = [plan.load(path) for path in paths]
    names = [study.name for study in studies]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(
            f"several of {[str(path) for path in paths]} have the name {twice}; give each a name of its own"
        )
    for study in studies:
        plan.check(study)
    for study, path in zip(studies, paths, strict=True):
        _one(study, path, runs / study.name, local=local, jobs=jobs, report_only=report_only, console=console)


def _one(
    study: Study, path: Path, folder: Path, *, local: bool, jobs: int | None, report_only: bool, console: Console
) -> None:
    say = partial(wrapped.say, console)
    if not report_only:
        jobs = jobs or default_jobs(study, local=local)
        say(f"{study.name}: {len(study.arms)} arms x {len(study.seeds)} seeds, {jobs} runs at a time, in {folder}")
        try:
            with ended(say):
                Runner(study, folder, local=local, jobs=jobs, say=say).run()
        except KeyboardInterrupt:
            say("stopped; the same command continues the study")
            raise
    found = results.read(study, folder)
    table.show(found, console)
    for written in page.write(found, path):
        say(f"written: {written}")
