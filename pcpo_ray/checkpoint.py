"""Checkpoints: `step-000123/`, written beside and renamed, so that one is there whole or not at all.

trainable.safetensors   what is trained, in float32     optimizer.safetensors   AdamW's moments, exactly
averaged.safetensors    its running mean, if the run keeps one
state.json              version, the driver's state, the checksum of every other file (written last)
and what diffusers loads: pytorch_lora_weights.safetensors, or a pipeline in model/

Learner ranks that hold a part each (fsdp2) write a file each, trainable-1-of-2.safetensors and so on, of whole tensors:
any number of ranks reads them.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pcpo_ray import ranks
from pcpo_ray.disk import writing
from pcpo_ray.errors import CheckpointError
from pcpo_ray.stages import State

STATE = "state.json"
TRAINABLE, AVERAGED, OPTIMIZER = "trainable", "averaged", "optimizer"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a checkpoint holds."""

    version: int
    state: State
    parameters: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]

    @property
    def best(self) -> Mapping[str, Tensor]:
        """What users are to get: the running mean, where there is one."""
        return self.averaged or self.parameters


def folder_for(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:06d}"


def beside(folder: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return folder.with_name(f".{folder.name}.unfinished")


def write(
    folder: Path,
    *,
    version: int,
    state: State,
    parameters: Mapping[str, Tensor],
    averaged: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    export: Callable[[Path], None],
) -> None:
    """Write a checkpoint; `export` writes diffusers' own files. An older one of the same name is replaced.

    Raises RunError where the disk does not take it; nothing of it is left then.
    """
    with unfinished(folder):
        begin(folder)
        write_part(folder, parameters, averaged, optimizer)
        export(beside(folder))
        finish(folder, version=version, state=state)


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[None]:
    """While a checkpoint is written: where the disk does not take it, RunError, and nothing of it is left."""
    with contextlib.ExitStack() as unless_whole:
        unless_whole.callback(shutil.rmtree, beside(folder), ignore_errors=True)
        with writing(folder):
            yield
        unless_whole.pop_all()


def begin(folder: Path) -> None:
    """Make room for a checkpoint's parts."""
    shutil.rmtree(beside(folder), ignore_errors=True)
    beside(folder).mkdir(parents=True)


def write_part(
    folder: Path,
    parameters: Mapping[str, Tensor],
    averaged: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    *,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Write one rank's share of a checkpoint that has begun. Raises CheckpointError if it has not, on this disk."""
    from safetensors.torch import save_file

    if not beside(folder).is_dir():
        raise CheckpointError(
            f"{beside(folder)}, which the learner's first rank has made, is not on the disk of rank {part}; the "
            "learner's ranks must write to storage that their nodes share"
        )

    for name, tensors in ((TRAINABLE, parameters), (AVERAGED, averaged), (OPTIMIZER, optimizer)):
        if tensors or name == TRAINABLE:
            held = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            suffix = "" if parts == 1 else f"-{part + 1}-of-{parts}"
            save_file(held, beside(folder) / f"{name}{suffix}.safetensors")


def finish(folder: Path, *, version: int, state: State, parts: int = 1) -> None:
    """Make a checkpoint of which every part was written one that counts. Raises CheckpointError if one is not here."""
    made = beside(folder)
    there = len(list(made.glob(f"{TRAINABLE}*.safetensors")))
    if there != parts:
        raise CheckpointError(
            f"{made} has {there} of {parts} parts; the learner's ranks must write to storage that their nodes share"
        )
    files = sorted(path for path in made.rglob("*") if path.is_file())
    sums = {str(path.relative_to(made)): _checksum(path) for path in files}
    text = json.dumps({"version": version, "driver": asdict(state), "files": sums}, indent=1, allow_nan=False)
    (made / STATE).write_text(text, encoding="utf-8")
    for path in (*files, made / STATE):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)


def read(folder: Path) -> Checkpoint:
    """A checkpoint, every file seen to be what was written. Raises CheckpointError."""
    from safetensors.torch import load_file

    found = verify(folder)

    def all_of(kind: str) -> dict[str, Tensor]:
        parts = [name for name in found["files"] if "/" not in name and name.startswith((f"{kind}.", f"{kind}-"))]
        return {key: value for name in parts for key, value in load_file(folder / name).items()}

    return Checkpoint(
        version=found["version"],
        state=State(**found["driver"]),
        parameters=all_of(TRAINABLE),
        averaged=all_of(AVERAGED),
        optimizer=all_of(OPTIMIZER),
    )


def verify(folder: Path) -> dict:
    """The contents of state.json. Raises CheckpointError naming the file that is missing, cut short or changed."""
    try:
        found: dict = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files, _, _ = dict(found["files"]), found["version"], State(**found["driver"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder}: {STATE} cannot be read ({error})") from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint {folder}: {name} is missing")
        if _checksum(path) != expected:
            raise CheckpointError(f"checkpoint {folder}: {name} is cut short or changed (its checksum differs)")
    return found


def newest(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is whole; `warn` is told of each newer one that is not."""
    for folder in reversed(everyone(run)):
        try:
            verify(folder)
        except CheckpointError as error:
            warn(f"{error}; falling back to an older one")
        else:
            return folder
    return None


def everyone(run: Path) -> list[Path]:
    """The checkpoints' folders, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def prune(run: Path, keep: int, spared: Path | None = None) -> None:
    """Delete all but the newest `keep` and the one that is `spared`."""
    for folder in everyone(run)[:-keep]:
        if folder != spared:
            with writing(folder):
                shutil.rmtree(folder)


def load_parameters(folder: Path, saved: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Overwrite `parameters`, rounding the saved float32 values where these are of a narrower dtype.

    Raises CheckpointError if names or shapes are not those of the checkpoint, or what it holds is not float32.
    """
    there = {name: (value.dtype, value.shape) for name, value in saved.items()}
    here = {name: (torch.float32, p.shape) for name, p in parameters.items()}
    if there != here:
        differing = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        raise CheckpointError(
            f"checkpoint {folder} is of another model: {len(differing)} of {len(here)} parameters differ, "
            f"such as {differing[:3]}; use the config that it was trained with"
        )
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(ranks.place(value, parameters[name]))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
