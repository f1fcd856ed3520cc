"""report.html: one self-contained page on a run, for a reader who was not there.

It is made from the run folder alone, so it can be written at any time, also for a run that was cut short. The same
folder gives the same bytes.
"""

import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcpo_ray import __version__, config
from pcpo_ray.commands.report import cost, health, images, mixture, numbers, reference_curves, sections
from pcpo_ray.commands.report.verdict import verdict
from pcpo_ray.config import files
from pcpo_ray.data import worlds
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.disk import replace
from pcpo_ray.runs.records import Record, read_record

if TYPE_CHECKING:
    import jinja2


@cache
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
    shown = ("number", "signed", "interval", "places_of", "percent", "duration")
    templates.filters.update({name: getattr(numbers, name) for name in shown})
    return templates.get_template(name)


def write(folder: Path, *, refresh: float | None = None) -> Path:
    """Write folder/report.html and return its path; a browser loads it again after `refresh` seconds.

    Raises RunError if there is no run, or its scores are gone.
    """
    record = read_record(folder)
    run = record.run
    found = reference_curves.beside(record)
    page = template("report/page.html.j2").render(
        record=record,
        run=run,
        version=__version__,
        refresh=refresh,
        state=" ".join([sections.state(record), *(f"Left out are {text}." for text in record.damaged)]),
        evaluated=record.prompts,
        optimizer_steps=min(run.optimizer.minibatches, run.rollout.prompts) * run.optimizer.epochs,
        subset=sections.subset(run),
        started=sections.started(record),
        prompt_facts=sections.facts_of_prompts(record),
        workers=sections.workers(record),
        verdict=verdict(record, found),
        lead=sections.lead(record),
        images=images.examples(record),
        strips=images.over_the_run(record),
        rewards=sections.rewards(record, found),
        beside=found,
        mixture=[{**pair, "verdict": mixture.verdict(pair)} for pair in mixture.pairs(record)],
        quality=sections.quality(record),
        timesteps=sections.timesteps(record),
        histories=sections.histories(record),
        first_update=record.named("first_update")[:1],
        times=sections.times(record),
        idle=sections.idle(record),
        tokens=cost.tokens(record),
        health=health.health(record),
        use=_use(record),
        config=files.dump(run),
        command=shlex.join(["pcpo-ray", "train", f"runs/{run.name}/config.yaml", f"name={run.name}-again"]),
    )
    path = folder / "report.html"
    replace(path, page)
    return path


def _use(record: Record) -> dict[str, Any]:
    """Return the command and the program that draw with what the run learned."""
    run = record.run
    place = f"runs/{run.name}"
    steps = [
        event["to" if event["kind"] == "rolled_back" else "step"] for event in record.named("checkpoint", "rolled_back")
    ]
    saved = steps[-1] if steps else None
    shown = next(iter(_texts(record)), "a prompt of yours")
    code = None
    if isinstance(run.model.train, config.Lora) and saved is not None:
        path = run.model.path.rstrip("/")
        world = worlds.of_model(path)
        model = repr(path) if world is None else f'pcpo_ray.{world}.checkpoint("{path}")'
        lines = ["from diffusers import DiffusionPipeline", *([f"import pcpo_ray.{world}"] if world else [])]
        lines += [
            "",
            f"pipeline = DiffusionPipeline.from_pretrained({model})",
            f'pipeline.load_lora_weights("{place}/{checkpoints.folder_for(Path(), saved)}")',
            f"drawn = pipeline({shown!r}, num_inference_steps={run.sampling.steps}, "
            f"guidance_scale={run.sampling.guidance_scale:g})",
            "drawn.images[0].save('image.png')",
        ]
        code = "\n".join(lines)
    return {"saved": saved, "sample": shlex.join(["pcpo-ray", "sample", place, shown]), "code": code}


def _texts(record: Record) -> list[str]:
    """Return the evaluated prompts, none if nothing was evaluated."""
    return images.prompts(record, min(record.scores)) if record.scores else []
