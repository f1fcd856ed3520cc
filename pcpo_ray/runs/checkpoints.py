"""Checkpoints: `step-000123/`, written beside and renamed, so that one is there whole or not at all.

trainable.safetensors   what is trained, in float32     optimizer.safetensors   what the optimizer keeps, exactly
averaged.safetensors    its EMA, if the run keeps one
state.json              version, the driver's state, the checksum of every other file (written last)
and what diffusers loads: pytorch_lora_weights.safetensors, or a pipeline in model/

Learner ranks that hold a part each (fsdp2) write a file each, trainable-1-of-2.safetensors and so on, of whole tensors:
any number of ranks reads them. Each sums and syncs its own. Further files of tensors may lie beside (`write_more`).
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from pcpo_ray.data import weights
from pcpo_ray.data.updates import DriverState
from pcpo_ray.data.weights import WeightSnapshot
from pcpo_ray.errors import CheckpointError
from pcpo_ray.runs.disk import partial_path, replaced, swap_in, sync, writing
from pcpo_ray.runs.names import name_of, step_of

STATE = "state.json"
CANARY = ".canary"
"""Among an older version's tensors, what it is to predict (canary.py)."""
TRAINABLE, AVERAGED, OPTIMIZER = "trainable", "averaged", "optimizer"
UNFINISHED = re.compile(r"\.step-\d{6,}\.[0-9a-f]{32}\.unfinished")
CHUNK = 1 << 24

PATIENCE, SLOWEST = 600.0, 50e6
"""Seconds, and bytes a second, in which the slowest disk that is waited for takes a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The contents of a checkpoint; `updates` counts the updates in the EMA."""

    version: int
    state: DriverState
    parameters: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    updates: int
    optimizer: Mapping[str, Tensor]

    @property
    def best(self) -> Mapping[str, Tensor]:
        """The parameters for users: the EMA if there is one, else the trained ones."""
        return self.averaged or self.parameters


def folder_for(run: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return run / "checkpoints" / name_of(step)


def seconds_for(size: int) -> float:
    """Return the seconds that ranks wait for each other while they write `size` bytes together."""
    return PATIENCE + size / SLOWEST


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Yield the folder to write a checkpoint to until it is complete; deletes whatever is left there at the end.

    Raises RunError if it cannot be written, CheckpointError if something else has its name.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise CheckpointError(f"{folder} is in the way: a file or a link, and no checkpoint of ours; move it away")
    made = partial_path(folder)
    with writing(folder):
        try:
            made.mkdir(parents=True)
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def write_part(
    made: Path,
    parameters: Mapping[str, Tensor],
    averaged: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    *,
    part: int = 0,
    parts: int = 1,
) -> dict[str, str]:
    """Write and sync one rank's part of an unfinished checkpoint; returns the checksums of its files.

    Raises CheckpointError if the checkpoint's folder is not on this disk.
    """
    if not made.is_dir():
        raise CheckpointError(
            f"{made}, which the learner's first rank has made, is not on the disk of rank {part}; the "
            "learner's ranks must write to storage that their nodes share"
        )
    sums: dict[str, str] = {}
    for kind, tensors in ((TRAINABLE, parameters), (AVERAGED, averaged), (OPTIMIZER, optimizer)):
        if tensors or kind == TRAINABLE:
            sums |= write_more(made, kind if parts == 1 else f"{kind}-{part + 1}-of-{parts}", tensors)
    return sums


def write_more(made: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write NAME.safetensors, such as versions/7.safetensors, into an unfinished checkpoint; returns its checksum."""
    from safetensors.torch import save_file

    held = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    path = made / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(held, path)
    sync(path)
    return {f"{name}.safetensors": checksum(path)}


def read_more(folder: Path, name: str) -> dict[str, Tensor]:
    """Read tensors that `write_more` wrote, from a verified checkpoint."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(folder / f"{name}.safetensors")
    return found


def write_versions(made: Path, older: Iterable[WeightSnapshot]) -> dict[str, str]:
    """Add older weights that batches under way are sampled with; returns the checksums of their files."""
    sums: dict[str, str] = {}
    for one in older:
        canary = torch.tensor(one.manifest.canary, dtype=torch.float64)
        sums |= write_more(made, _version(one.manifest.version), {**weights.unpack(one), CANARY: canary})
    return sums


def read_version(folder: Path, version: int) -> WeightSnapshot:
    """Read an older version of the weights from a checkpoint, with its canary. Raises CheckpointError."""
    try:
        parameters = read_more(folder, _version(version))
        canary = tuple(parameters.pop(CANARY).tolist())
    except (OSError, KeyError) as error:
        raise CheckpointError(f"{folder} does not hold the weights of version {version}: {error}") from None
    return weights.pack(version, parameters, canary=canary)


def _version(version: int) -> str:
    return f"versions/{version:06d}"


def finish(
    made: Path, folder: Path, *, version: int, state: DriverState, sums: Mapping[str, str], updates: int = 0
) -> None:
    """Complete an unfinished checkpoint. `sums` are the checksums of files already synced; others are added here.

    Raises CheckpointError if a file in `sums` is missing.
    """
    there = {path.relative_to(made).as_posix(): path for path in made.rglob("*") if path.is_file()}
    if absent := sorted(sums.keys() - there.keys()):
        raise CheckpointError(
            f"{made} lacks {absent}, which the learner's ranks have written; they must write to storage that their "
            "nodes share"
        )
    for path in there.values():  # safetensors lets nobody else read what it writes
        with contextlib.suppress(OSError):  # some network disks have modes of their own
            path.chmod(made.stat().st_mode & 0o666)
    every = dict(sums)
    for name in sorted(there.keys() - sums.keys()):
        sync(there[name])
        every[name] = checksum(there[name])
    found = {"version": version, "updates": updates, "driver": asdict(state), "files": dict(sorted(every.items()))}
    (made / STATE).write_text(json.dumps(found, indent=1, allow_nan=False), encoding="utf-8")
    sync(made / STATE)
    for inner in (*sorted(path for path in made.rglob("*") if path.is_dir()), made):
        sync(inner)
    swap_in(made, folder)


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint after verifying every file. Raises CheckpointError."""
    from safetensors.torch import load_file

    found = verify(folder)

    def all_of(kind: str) -> dict[str, Tensor]:
        parts = [name for name in found["files"] if "/" not in name and name.startswith((f"{kind}.", f"{kind}-"))]
        return {key: value for name in parts for key, value in load_file(folder / name).items()}

    return Checkpoint(
        version=found["version"],
        state=DriverState(**found["driver"]),
        parameters=all_of(TRAINABLE),
        averaged=all_of(AVERAGED),
        updates=found["updates"],
        optimizer=all_of(OPTIMIZER),
    )


def verify(folder: Path) -> dict:
    """Check every file and return the contents of state.json. Raises CheckpointError with the damaged file's name."""
    try:
        found: dict = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files, _, _, _ = dict(found["files"]), found["version"], found["updates"], DriverState(**found["driver"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder}: {STATE} cannot be read ({error})") from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint {folder}: {name} is missing")
        try:
            changed = checksum(path) != expected
        except OSError as error:  # a bad sector, or a file of another user
            raise CheckpointError(f"checkpoint {folder}: {name} cannot be read ({error})") from None
        if changed:
            raise CheckpointError(f"checkpoint {folder}: {name} is cut short or changed (its checksum differs)")
    return found


def newest(run: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest complete checkpoint of a run; `warn` gets a line for each newer one that is damaged."""
    for folder in reversed(all_checkpoints(run)):
        try:
            verify(folder)
        except CheckpointError as error:
            warn(f"{error}; falling back to an older one")
        else:
            return folder
    return None


def all_checkpoints(run: Path) -> list[Path]:
    """List the checkpoints' folders, oldest first; ignores files, links and names that are not exactly ours."""
    found = {}
    for path in (run / "checkpoints").glob("step-*"):
        step = step_of(path.name)
        if step is not None and path.is_dir() and not path.is_symlink():
            found[step] = path
    return [found[step] for step in sorted(found)]


def steps(run: Path) -> list[int]:
    """List the steps whose checkpoint has its state.json, oldest first."""
    found = (step_of(folder.name) for folder in all_checkpoints(run) if (folder / STATE).is_file())
    return [step for step in found if step is not None]


def prune(run: Path, keep: int, until: int, spared: int | None = None) -> None:
    """Delete the checkpoints up to a step but the newest `keep` that have their state.json, and that of `spared`."""
    kept = [step for step in steps(run) if step <= until][-keep:]
    for folder in all_checkpoints(run):
        step = step_of(folder.name)
        if step is not None and step <= until and step not in kept and step != spared:
            delete(folder)


def delete(folder: Path) -> None:
    """Delete a checkpoint, state.json first, so that a partly deleted one does not count. Raises RunError."""
    with writing(folder):
        (folder / STATE).unlink(missing_ok=True)
        shutil.rmtree(folder)


def recover_interrupted(run: Path) -> None:
    """Clear away checkpoints that a killed process left unfinished. Only the run's writer may call this."""
    for path in (run / "checkpoints").glob(".step-*"):
        name = path.name.removeprefix(".").removesuffix(".replaced")
        folder = path.with_name(name)
        if step_of(name) is not None and path == replaced(folder):
            with writing(folder):
                if folder.exists():
                    shutil.rmtree(path)
                else:
                    path.rename(folder)
                    sync(folder.parent)
        elif UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def checksum(path: Path) -> str:
    """Hash a file at the speed of the disk, to find files cut short or changed; it is not cryptographic."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
