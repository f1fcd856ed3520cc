"""A plan as tables and sentences."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pcpo_ray.commands.plan import Fit, Plan, scoring, sizes
from pcpo_ray.commands.plan.gpus import CONTEXT, SLACK
from pcpo_ray.commands.plan.layouts import Layout
from pcpo_ray.commands.plan.pace import Forecast, Pace
from pcpo_ray.commands.plan.roles import Memory, Store
from pcpo_ray.commands.plan.switches import Overrides
from pcpo_ray.commands.wrapped import say
from pcpo_ray.config import ROLLOUT_STORE_FRACTION


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_:
            return f"{count / bytes_:.2f} {unit}"
    return f"{count:.0f} B"


def show(planned: Plan, console: Console) -> None:
    """A table a role, and one of the object stores."""
    for role in planned.roles:
        console.print(role_table(role))
    console.print(store_table(planned.store, local=planned.local))
    lines = []
    if planned.largest is not None:
        height, width = planned.largest
        lines.append(f"prompts bring sizes of their own, and all is planned at the largest, {height} x {width}")
    lines += planned.uneven
    if again := sizes.recomputed_pairs(planned.run)[0]:
        lines.append(
            f"a rank predicts up to {again} (image, step) pairs once more before its first optimizer step: one forward "
            "pass each (objective.old_predictions=recomputed)"
        )
    rewards, park = (*planned.run.rewards, *planned.run.evaluation.rewards), planned.run.workers.park
    for name in scoring.own(rewards):
        kept = ", nor is it parked" if park else ""
        lines.append(f"{name} is your own reward: what it takes is not counted{kept}")
    for name in scoring.unknown(rewards):
        lines.append(f"{name} has a network that its own package runs on the CPU: what it takes is not counted")
    if park and (idle := [role.role for role in planned.roles if not role.gpus]):
        lines.append(f"workers.park moves nothing on a CPU, and so not here: {', '.join(idle)}")
    where = (
        "the machine's memory" if planned.local else "the machines' memory, all processes and object stores together"
    )
    lines.append(f"in {where}: {size(planned.main_memory)}")
    if any(not role.gpus for role in planned.roles):
        lines.append(
            "on CPUs this is what tensors take, beside Python and its libraries (some 0.6 GiB a process). glibc keeps "
            "what is given back: learners of small models came to 1.1 to 3.1 times as much; with "
            "MALLOC_MMAP_THRESHOLD_=131072 in the workers' environment, all roles stayed within a fifth of it"
        )
    if any(role.gpus for role in planned.roles):
        lines.append(
            f"on GPUs {size(CONTEXT)} a process for CUDA itself and {SLACK:.0%} for the allocator are counted in the "
            "totals: assumed, as no GPU was at hand to measure on; workspaces of single kernels are not"
        )
    for line in lines:
        say(console, line)


def role_table(role: Memory) -> Table:
    on = "CPU" if not role.gpus else "GPU" if role.gpus >= 1 else f"{role.gpus:g} of a GPU"
    table = _table(f"{role.role} on {on}" + (f", each of {role.processes}" if role.processes > 1 else ""))
    for name, count in role.held.items():
        table.add_row(escape(name), size(count), "")
    for name, count in role.phases.items():
        table.add_row(escape(name), size(count), "at the peak" if name == role.busiest else "another time")
    table.add_row("[bold]at most", f"[bold]{size(role.total)}", "", end_section=bool(role.beside))
    for name, count in role.beside.items():
        table.add_row(escape(name), size(count), "main memory")
    return table


def store_table(store: Store, *, local: bool = False) -> Table:
    table = _table("kept in main memory" if local else "object stores, all nodes together")
    table.add_row("groups sampled and not yet learned", size(store.groups), "")
    table.add_row("  of it a group's trajectory", size(store.trajectory), "each")
    table.add_row("  of it a group's images", size(store.images), "each")
    for name, count in store.others.items():
        table.add_row(escape(name), size(count), "")
    table.add_row("[bold]at most", f"[bold]{size(store.total)}", "")
    if not local:
        table.add_row("room that they need", size(store.needed), f"{ROLLOUT_STORE_FRACTION:.0%} for groups")
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 1))
    table.add_column(min_width=46)
    table.add_column(justify="right", min_width=12)
    table.add_column(style="dim")
    return table


def show_fits(verdicts: Sequence[Fit], console: Console, gpu: str | None) -> None:
    """A sentence each on what fits, and what would make the rest fit."""
    for verdict in verdicts:
        where = "" if verdict.what == "object stores" else f" of {gpu}"
        room = f"{size(verdict.needed)} of {size(verdict.room)}{where}"
        if verdict.fits:
            say(console, f"{verdict.what}: fits, {room}")
            continue
        say(console, f"{verdict.what}: DOES NOT FIT, {room}")
        for remedy in verdict.remedies:
            say(console, f"  {typed(remedy.overrides)} makes it fit: {size(remedy.needed)}")
        if not verdict.remedies:
            say(console, "  no switch here makes it fit: take a larger GPU, a smaller model or smaller images")


def show_together(overrides: Overrides, verdicts: Sequence[Fit], console: Console) -> None:
    """Print the effect of all remedies at once."""
    fits = all(verdict.fits for verdict in verdicts)
    say(console, f"{'everything fits' if fits else 'still it does NOT all fit'}, with {typed(overrides)}:")
    for verdict in verdicts:
        say(console, f"  {verdict.what}: {size(verdict.needed)} of {size(verdict.room)}")


def show_pace(planned: Plan, pace: Pace, forecast: Forecast, console: Console) -> None:
    """Speeds, the ratio of workers that leaves nobody idle, and what the config's numbers come to."""
    run = planned.run
    table = _table(f"speed, by {pace.source}")
    for role, seconds in pace.seconds.items():
        one = "learner's rank" if role == "learner" else role.removesuffix("s")
        table.add_row(escape(f"one {one}"), f"{run.rollout.images / seconds:.3g}/s", f"{seconds:.3g} s a group")
    console.print(table)
    work, images = forecast.work, run.rollout.prompts * run.rollout.images
    shares = " : ".join(f"{work[role] / work['learner']:.2g}" for role in ("samplers", "learner", "scorers"))
    say(
        console,
        f"samplers : learner : scorers = {shares} leaves none idle, where rollouts and learning go side by side",
    )
    if not run.rollout.max_staleness:
        say(
            console, "here they take turns (rollout.max_staleness=0), so someone always waits; 1 puts them side by side"
        )
    numbers = ", ".join(f"{role} {count}" for role, count in forecast.sizes.items())
    idle = ", ".join(f"{role} {share:.0%}" for role, share in forecast.idle.items())
    say(
        console,
        f"with {numbers}: {forecast.seconds:.3g} s a step, {images / forecast.seconds:.3g} samples/s; idle: {idle}",
    )
    if forecast.fitting != forecast.sizes:
        better = " ".join(f"workers.{role}.workers={count}" for role, count in forecast.fitting.items())
        step = forecast.fitting_seconds
        say(console, f"{better}: {step:.3g} s a step, {images / step:.3g} samples/s; more would hardly be faster")


def show_layouts(found: Sequence[Layout], console: Console, gpu: str | None) -> None:
    """Print the layouts of the processes there are, the fastest that fits first, and what chooses it."""
    table = _table(f"layouts of {found[0].processes} processes that sample and learn, by the same speeds")
    for one in found:
        fits = "" if one.fits is None else "fits" if one.fits else f"does not fit {gpu}"
        table.add_row(f"{one.name}: {one.samplers} samplers, {one.ranks} ranks", f"{one.seconds:.3g} s a step", fits)
    console.print(table)
    best = found[0]
    if best.fits is not False:
        say(console, f"the fastest is {best.name}: {typed(best.overrides)}")


def typed(overrides: Overrides) -> str:
    """Quote overrides for a shell."""
    return " ".join(f"'{override}'" if set(override) & set("{} ") else override for override in overrides)
