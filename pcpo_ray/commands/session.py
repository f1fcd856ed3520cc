"""From a config to a run: what is checked before anything is loaded, and how a run starts, resumes and is summed up."""

import dataclasses
import gc
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pcpo_ray import config, models, rewards
from pcpo_ray.config.files import differing
from pcpo_ray.data import prompts
from pcpo_ray.errors import AlarmError, ClusterError, ConfigError, RunError
from pcpo_ray.metrics.reporter import ExportingReporter, MetricsReporter, NoReporter
from pcpo_ray.models import lora_file, policy
from pcpo_ray.rewards import quality
from pcpo_ray.runs import intervals
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.runs.records import read
from pcpo_ray.training import inputs, monitors
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.training.stages import Stages
from pcpo_ray.workers.learner import mini_batches

FREE_TO_CHANGE = ("steps", "workers", "trackers", "checkpoints", "monitors")
"""Keys that a resumed run may have otherwise: none of them changes what the steps until then would have been."""

SAID = 5
"""How many differences are named in one message."""

PLACES = ("model.text_cache", "evaluation.quality.cache")
"""Keys that say where something is kept, and not what."""


def check(run: config.Run) -> None:
    """See that a run can start, without loading a model. Raises the PcpoError of what is wrong."""
    check_files(run)
    check_steps(run)


def check_files(run: config.Run) -> None:
    """That all that the run reads is there."""
    models.folder_of(run.model)
    if isinstance(run.model.train, config.Lora) and run.model.train.start is not None:
        lora_file.find(Path(run.model.train.start))
    for reward in (*run.rewards, *run.evaluation.rewards):
        rewards.check(reward)
    quality.check(run)
    prompts.sources(run)


def check_steps(run: config.Run) -> None:
    """That the sampler's steps can carry the credit, and that each of the learner's ranks has some to learn.

    The first time takes seconds, in which diffusers is imported.
    """
    folder = models.folder_of(run.model)
    mini_batches.check_ranks(run, policy.trained_steps(run))
    if run.evaluation.sampling is not None:
        policy.evaluation_credit(run, models.schedule_of(folder, run.model, run.evaluated))


@contextmanager
def frozen() -> Iterator[None]:
    """Inside, the garbage collector leaves alone what is there already.

    That is some 200,000 objects, of modules mostly, which it would go through again and again while tasks come and go:
    with 10,000 of them in flight, that was up to a third of the driver's work.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def begun(run: config.Run, *, local: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, the run has been seen to be one that can start, and Ray is there; what was started here ends with it.

    Raises what `check` raises, and ClusterError.
    """
    check_files(run)
    if local:
        check_steps(run)
        yield
        return
    from pcpo_ray.cluster import groups
    from pcpo_ray.cluster.connect import joined_cluster

    with ExitStack() as ending:
        with groups.own_process_group():
            ending.enter_context(joined_cluster(run, say, meanwhile=lambda: check_steps(run)))
        yield


def sources(run: config.Run) -> tuple[prompts.PromptSource, prompts.PromptSource]:
    """The training prompts, and those of evaluations."""
    return prompts.sources(run)


def stages(run: config.Run, *, local: bool, say: Callable[[str], None], announced: bool = False) -> Stages:
    """The run's workers: in this process, or on Ray, where an `announced` run is found by its name."""
    if local:
        if run.workers.learner.ranks > 1:
            raise ClusterError(
                f"workers.learner.ranks is {run.workers.learner.ranks}, and one process has one rank; train on Ray "
                "(without --local), or set workers.learner.ranks=1"
            )
        from pcpo_ray.training.local import LocalStages

        return LocalStages(run)
    from pcpo_ray.cluster.connect import connect

    return connect(run, say, announced=announced)


def meter(run: config.Run, *, local: bool, port: int | None, say: Callable[[str], None]) -> MetricsReporter:
    """Who tells Prometheus of the run: Ray does; in this process a port, where one is asked for.

    Raises RunError for a port that is taken, and for one that is asked for on Ray.
    """
    if not local:
        if port is not None:
            raise RunError(f"--metrics-port {port} is for --local; on Ray, scrape the nodes' metrics ports, as for Ray")
        from pcpo_ray.cluster.exporter import RayExporter

        return ExportingReporter(run.name, RayExporter())
    if port is None:
        return NoReporter()
    from pcpo_ray.metrics.prometheus import HOST, Endpoint

    endpoint = Endpoint(port)
    say(f"metrics: http://{HOST}:{endpoint.port}/metrics")
    return ExportingReporter(run.name, endpoint)


def surroundings(local: bool) -> dict[str, Any]:
    """What a run's speed and last bits depend on beside its config: backend, this machine, versions."""
    import torch

    packages = ("pcpo_ray", "torch", "diffusers", "transformers", "peft", *(() if local else ("ray",)))
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    return {
        "backend": "in-process" if local else "Ray",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cores": os.cpu_count(),
        "versions": [f"Python {platform.python_version()}", *versions],
    }


def create(home: RunFolder, run: config.Run, say: Callable[[str], None]) -> Recorder:
    """A new run's folder and its recorder. Raises RunError if it exists; nothing stays of one that was interrupted."""
    began = inputs.digests(inputs.of_run(run))
    home.claim_new(say)
    there = home.local.exists()
    try:
        return Recorder.create(home.local, run, url=home.url, began=began)
    except KeyboardInterrupt:
        if not there and home.local.exists():
            home.discard()
        raise


def resume(
    folder: Path, run: config.Run, say: Callable[[str], None], *, url: str | None = None
) -> tuple[Recorder, int | None]:
    """The run's recorder and the step of the checkpoint to continue from (None where there is none yet).

    Raises RunError if there is no such run, if a process of this machine is writing it, or if `run` or a file that it
    points to differs from it in what cannot change under way, and AlarmError if its monitors ended it and are still the
    same.
    """
    home = RunFolder(local=folder, url=url)
    home.take_over(say)
    if not (folder / "config.yaml").is_file():
        raise RunError(f"there is no run at {folder} to resume; leave out --resume to start it")
    changed = changes(folder, run, free=FREE_TO_CHANGE)
    if changed.config or changed.files:
        detail = [f"another config: {_some(changed.config)}"] if changed.config else []
        detail += [f"other files: {_some(changed.files)}"] if changed.files else []
        raise RunError(
            f"{home.place} was started with {' and '.join(detail)}; give it back, or start under another name"
        )
    alarm = monitors.ending(folder)
    if alarm and read(folder).monitors == run.monitors:
        raise AlarmError(alarm)
    if inputs.read(folder) is None:
        say(f"{home.place} has no inputs.json: whether its prompts, model and rewards are as they were is not known")
    for text in changed.own:
        say(f"{text}; it goes on with it as it is now")
    home = home.claim()
    found = home.newest(say)
    if found is None:
        say(f"{home.place} has no checkpoint yet: starting from step 0")
    recorder = Recorder.reopen(home, run, -1 if found is None else found)
    for text in recorder.repaired:
        say(text)
    if changed.own:
        recorder.event("code_changed", changed=changed.own)
    return recorder, found


@dataclass(frozen=True, kw_only=True)
class Changes:
    """In what a run is no more what it was, in words: its config, the files that it points to, the user's own code."""

    config: Sequence[str]
    files: Sequence[str]
    own: Sequence[str]


def changes(folder: Path, run: config.Run, *, free: Sequence[str], known: dict[Path, str] | None = None) -> Changes:
    """In what `run` differs from the run in a folder, but for keys that are `free`. What has moved does not differ.

    Digests of files that are `known` are not made again.
    """
    began, files = inputs.read(folder) or {}, inputs.of_run(run)
    now = inputs.digests(files, known)
    moved = {key for key in began.keys() & now.keys() if not inputs.is_code(key)}
    of_config = differing(dataclasses.asdict(read(folder)), dataclasses.asdict(run))
    others = tuple(f"{key}." for key in (*free, *PLACES))
    found = list(inputs.changed(began, files, now))
    return Changes(
        config=[
            f"{key} {text}" for key, text in of_config.items() if key not in moved and not f"{key}.".startswith(others)
        ],
        files=[text for key, text in found if not inputs.is_own(key)],
        own=[text for key, text in found if inputs.is_own(key)],
    )


def changed_inputs(folder: Path, files: inputs.Files) -> list[str]:
    """Which of these files are not what the run in a folder began with, in words."""
    return [text for _, text in inputs.changed(inputs.read(folder) or {}, files, inputs.digests(files))]


def _some(texts: Sequence[str]) -> str:
    """The first of them, and how many there are besides."""
    more = [f"{len(texts) - SAID} more"] if len(texts) > SAID else []
    return "; ".join([*texts[:SAID], *more])


def read_to_evaluate(folder: Path, overrides: Sequence[str]) -> config.Run:
    """The config of a run, overridden in how it is evaluated.

    Raises what `read` raises, and ConfigError for an override that would tell nothing of the run, or change nothing.
    """
    old, new = read(folder), read(folder, overrides)
    moved = new.prompts
    if isinstance(moved, config.PromptFile) and isinstance(old.prompts, config.PromptFile):
        moved = dataclasses.replace(moved, path=old.prompts.path)
    if moved != old.prompts:
        raise ConfigError(
            "got other prompts than the run was trained on, which say what is held out; override evaluation.prompts"
        )
    own = new.evaluation.sampling
    if own is not None:
        given = {"steps": own.steps, "guidance_scale": own.guidance_scale, "process": own.deterministic or None}
        for name, value in given.items():
            if value is not None and getattr(new.sampling, name) != getattr(old.sampling, name):
                key = "deterministic" if name == "process" else name
                raise ConfigError(
                    f"sampling.{name} has no part in evaluations, which have evaluation.sampling.{key}={value}; "
                    "override that"
                )
    return new


def verdict(run: config.Run, gained: intervals.Estimate, images: int) -> str:
    """One sentence on whether the evaluated reward rose, of a gain that has an interval."""
    interval = f"{gained.mean:+.4f}, 95% interval {gained.low:+.4f} to {gained.high:+.4f}, {images} images"
    reward = f"The {run.of_evaluation('reward')}"
    if gained.low > 0:
        return f"{reward} rose: {interval}."
    if gained.high < 0:
        return f"{reward} FELL: {interval}."
    return f"{reward} did NOT clearly change: {interval}."
