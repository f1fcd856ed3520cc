"""Inputs: the contents of the files that a config points to, when a run began and now.

The run's inputs.json keeps their digests, by the config's keys. So a run finds its inputs again wherever they lie by
then, and a file that was changed under the same name is noticed. A digest covers a file's bytes, never its place or
time. For a .safetensors file above LARGE bytes it covers the size, the header and `PLACES` blocks of every tensor: a
model takes a second, not minutes. Training, merging or converting weights changes these; a change that leaves all of
them alone goes unnoticed. Files that workers read on other machines are not checked.
"""

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, assert_never

import xxhash

from pcpo_ray import config, models
from pcpo_ray.config import CustomAdvantage, CustomCredit, CustomObjective, CustomPrompts, PromptFile
from pcpo_ray.config.base import path_marks
from pcpo_ray.errors import RunError
from pcpo_ray.models.described import is_part
from pcpo_ray.process.plugins import resolve_class
from pcpo_ray.runs.folder import INPUTS

LARGE = 1 << 28
BLOCK, PLACES = 1 << 14, 4
"""The bytes of a block, and the number of blocks read of a tensor, evenly spaced from its first bytes to its last."""

CHUNK = 1 << 24
READERS = 8
"""The number of files that are read at a time."""

READ = (".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".pth")
"""The endings of files that are read from a model's folder; pages and images beside them are not."""

Files = Mapping[str, Mapping[str, Path]]
"""Files by the key of the config that points to them, and by their name below it. A file that a key names itself is `*`
with its ending, so that it may be renamed later."""

Digests = Mapping[str, Mapping[str, str]]


def of_run(run: config.Run) -> Files:
    """List every file that the run reads. Raises the PcpoError of one that is not there."""
    found = dict(of_model(run.model))
    for where, prompts in (("prompts", run.prompts), ("evaluation.prompts", run.evaluation.prompts)):
        if isinstance(prompts, PromptFile):
            found[f"{where}.path"] = _itself(prompts.file)
        elif isinstance(prompts, CustomPrompts):
            found |= _of_own(where, prompts.kind, prompts.options)
    for where, part in (("credit", run.credit), ("advantage", run.advantage), ("objective", run.objective)):
        if isinstance(part, CustomCredit | CustomAdvantage | CustomObjective):
            found |= _of_own(where, part.kind, part.options)
    if run.optimizer.own:
        found |= _of_own("optimizer", run.optimizer.kind, run.optimizer.options)
    for where, rewards in (("rewards", run.rewards), ("evaluation.rewards", run.evaluation.rewards)):
        for place, reward in enumerate(rewards):
            found |= {f"{where}.{place}.{key}": files for key, files in _of_reward(reward).items()}
    if run.evaluation.quality is not None:
        found |= {f"evaluation.quality.{key}": files for key, files in _of_quality(run.evaluation.quality).items()}
    return found


def of_model(model: config.Model) -> Files:
    """List the files of the model before training. Raises ModelError."""
    folder = models.folder_of(model)
    index = folder / "model_index.json"
    parts = [
        name
        for name, value in json.loads(index.read_text(encoding="utf-8")).items()
        if is_part(value) and value[0] is not None and name not in models.UNUSED
    ]
    read = [index, *(path for part in parts for path in _below(folder / part))]
    found: dict[str, Mapping[str, Path]] = {
        "model.path": {path.relative_to(folder).as_posix(): path for path in read},
    }
    if model.single_file is not None:
        found["model.single_file"] = _itself(model.single_file)
    if model.denoiser is not None:
        found["model.denoiser"] = _code(model.denoiser)
    if isinstance(model.train, config.Lora) and model.train.start is not None:
        found["model.train.start"] = _folder_or_file(model.train.start)
    return found


def _of_reward(reward: config.Reward) -> Files:
    """List a reward's files: those that its config names, or the user's code and the files that its options name."""
    if isinstance(reward, config.CustomReward):
        return _of_own("", reward.kind, reward.options)
    paths = {key: getattr(reward, key) for key in path_marks(type(reward))}
    found: dict[str, Mapping[str, Path]] = {}
    if reward.clip is not None and "model" in paths:
        found |= _of_clip(paths.pop("model"), paths.pop("weights", None))
    return found | {key: _folder_or_file(path) for key, path in paths.items() if path is not None}


def _of_own(where: str, kind: str, options: Mapping[str, Any]) -> Files:
    """List the code of a class or function of the user's own, and the files that its options name."""
    below = f"{where}." if where else ""
    return {f"{below}kind": _code(kind), **_in_options(options, f"{below}options")}


def _of_quality(quality: config.Quality) -> Files:
    from pcpo_ray.rewards.quality import reference

    found: dict[str, Mapping[str, Path]] = {}
    match quality.features:
        case config.ClipFeatures(model=model, weights=weights):
            found |= {f"features.{key}": files for key, files in _of_clip(model, weights).items()}
        case config.InceptionFeatures(weights=file):
            found["features.weights"] = _itself(file)
        case config.DinoFeatures(model=folder):
            found["features.model"] = _folder_or_file(folder)
        case _:
            assert_never(quality.features)
    if isinstance(quality.reference, config.ImagesReference):
        where = Path(quality.reference.path)
        files = reference.image_files(quality.reference.path)
        whole = where.is_dir()  # those of a list go by their place, under a name that stored runs have
        found["reference.path"] = {
            path.relative_to(where).as_posix() if whole else f"picture {place}": path
            for place, path in enumerate(files, 1)
        }
    if quality.lpips is not None:
        found["lpips.weights"] = _itself(quality.lpips.weights)
    return found


def _of_clip(model: str, weights: str | None) -> Files:
    from pcpo_ray.rewards import clip

    name, file = clip.locate(model, weights)
    if file is not None:
        return {"weights": _itself(file)}
    return {"model": _folder_or_file(name.removeprefix("local-dir:"))}


def _in_options(value: Any, key: str) -> Files:
    """List the files and folders that the options of a custom class name."""
    if isinstance(value, str):
        files = _folder_or_file(value) if os.path.exists(value) else {}  # which takes any text, as Path.exists does not
        return {key: files} if files else {}
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: files for part, one in parts for name, files in _in_options(one, f"{key}.{part}").items()}


def _code(name: str) -> Mapping[str, Path]:
    """Find the file of the module of a custom class; none where it has no file."""
    try:
        path = Path(inspect.getfile(resolve_class(name)))
    except (TypeError, OSError):
        return {}
    return _itself(path) if path.is_file() else {}


def is_code(key: str) -> bool:
    """Tell whether a key names a custom class."""
    return key == "model.denoiser" or key.endswith(".kind")


def is_own(key: str) -> bool:
    """Tell whether a key points to custom code, which may be repaired while a run is away, or is an option of it.

    Code may write to the files that its options name.
    """
    return is_code(key) or ".options." in key


def _itself(path: str | Path) -> Mapping[str, Path]:
    return {f"*{Path(path).suffix}": Path(path)}


def _folder_or_file(place: str) -> Mapping[str, Path]:
    """List the files that are read at a place: a folder's, or one; none if nothing is there, as its reader says so."""
    path = Path(place)
    if path.is_dir():
        return {found.relative_to(path).as_posix(): found for found in _below(path, deep=False)}
    return _itself(path) if path.is_file() else {}


def _below(folder: Path, *, deep: bool = True) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix in READ and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file()
    )


# -- digests -----------------------------------------------------------------------------------------------------------


def digests(files: Files, known: dict[Path, str] | None = None) -> Digests:
    """Compute the digest of every file, but for those `known`. Raises RunError for one that cannot be read."""
    had = {} if known is None else known
    wanted = sorted({path for named in files.values() for path in named.values()} - had.keys())
    with ThreadPoolExecutor(READERS) as readers:
        had |= dict(zip(wanted, readers.map(digest, wanted), strict=True))
    return {key: {name: had[path] for name, path in named.items()} for key, named in files.items()}


def digest(path: Path) -> str:
    """Compute the digest of a file's bytes, or of the blocks that stand for them. Raises RunError."""
    try:
        size = path.stat().st_size
        found = xxhash.xxh3_128(f"{size} ".encode())
        with path.open("rb") as file:
            blocks = _blocks(file, size) if size > LARGE and path.suffix == ".safetensors" else None
            if blocks is None:
                while chunk := file.read(CHUNK):
                    found.update(chunk)
            for start, length in blocks or ():
                file.seek(start)
                found.update(file.read(length))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}; repair that, and start again") from error
    return found.hexdigest()


def _blocks(file: BinaryIO, size: int) -> list[tuple[int, int]] | None:
    """Locate the header of a .safetensors file and blocks of each tensor (start, length); None for any other file.

    https://huggingface.co/docs/safetensors: 8 bytes say how long the header is, whose offsets count from its end.
    """
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, size)))
        tensors = [tuple(map(int, value["data_offsets"])) for name, value in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        file.seek(0)
        return None
    base = 8 + length
    spread = [
        (base + start + (end - start - BLOCK) * place // (PLACES - 1), BLOCK)
        if end - start > PLACES * BLOCK
        else (base + start + place * BLOCK, min(BLOCK, max(0, end - start - place * BLOCK)))
        for start, end in sorted(tensors)
        for place in range(PLACES)
    ]
    return [(0, base), *spread]


# -- a run's -----------------------------------------------------------------------------------------------------------


def dump(began: Digests) -> str:
    """Serialise digests for the run's folder."""
    return json.dumps(began, indent=1) + "\n"


def read(folder: Path) -> Digests | None:
    """Read the digests that the run in a folder began with; None where there are none. Raises RunError."""
    path = folder / INPUTS
    if not path.is_file():
        return None
    try:
        found: Digests = {key: dict(named) for key, named in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); delete it, and the run goes on with what its config points to now"
        ) from None
    return found


def changed(began: Digests, files: Files, now: Digests) -> Iterator[tuple[str, str]]:
    """Yield every difference, in words, with the key of the config that points there."""
    for key in sorted(began.keys() & now.keys()):
        old, new = began[key], now[key]
        for name in sorted({*old, *new}):
            if name not in new:
                yield key, f"{key}: {name} of what the run began with is gone"
            elif name not in old:
                yield key, f"{key}: {files[key][name]} was not there when the run began"
            elif old[name] != new[name]:
                yield key, f"{key}: {files[key][name]} is not the file that the run began with"
