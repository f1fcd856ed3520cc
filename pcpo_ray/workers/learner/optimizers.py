"""The optimizer that a config names: made, checked, and its state as tensors for a checkpoint.

The kinds are torch's AdamW, AdamW with 8-bit moments (bitsandbytes), and a torch.optim.Optimizer of the user's own.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcpo_ray import config
from pcpo_ray.errors import TrainingError
from pcpo_ray.process.own import unfound
from pcpo_ray.process.plugins import explained, isolated, resolve_class

PLAIN = "#plain"
"""The name, among an optimizer's tensors, of the JSON text of everything that is no tensor."""

GROUP = "#group"
"""The prefix, among an optimizer's tensors, of tensors that belong to a group of parameters."""

SIDE = 256
"""Rows and columns of the matrix on which an optimizer is tried."""

EXPECTED = "expected a class derived from torch.optim.Optimizer, called as Class(parameters, lr=..., **options)"


def make(settings: config.Optimizer, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimizer of the trained parameters. Raises TrainingError."""
    groups = parameter_groups(settings, parameters)
    if settings.own:
        return _own(settings, groups)
    return _shipped(settings)(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def parameter_groups(settings: config.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Any:
    """Group the parameters for weight decay: all of them together, or norms and biases apart without it."""
    every = list(parameters.values())
    if settings.decay_norms_and_biases:
        return every
    parts = ([p for p in every if p.ndim >= 2], [p for p in every if p.ndim < 2])
    return [group for group in ({"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}) if group["params"]]


def _shipped(settings: config.Optimizer) -> Callable[..., torch.optim.Optimizer]:
    """Find the class of a shipped kind. Raises TrainingError where its package is not installed."""
    if settings.kind == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise TrainingError(
            f"optimizer.kind is {settings.kind}, and bitsandbytes cannot be imported here ({error}); "
            "pip install bitsandbytes wherever the learner runs, or set optimizer.kind=adamw"
        ) from None
    found: Callable[..., torch.optim.Optimizer] = AdamW8bit
    return found


def _own(settings: config.Optimizer, groups: Any) -> torch.optim.Optimizer:
    found = find_own(settings)
    try:
        with isolated(settings.kind):
            made: torch.optim.Optimizer = found(groups, lr=settings.learning_rate, **settings.options)
    except Exception as error:  # a class of the user's own may raise anything while it is built
        raise TrainingError(
            f"optimizer.kind {settings.kind!r} cannot be built with options {dict(settings.options)}: "
            f"{explained(error)}; {EXPECTED}"
        ) from error
    return made


def find_own(settings: config.Optimizer) -> Any:
    """Import an optimizer of the user's own and check its signature. Raises TrainingError."""
    try:
        found = resolve_class(settings.kind)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise TrainingError(
            f"optimizer.kind {settings.kind!r}: {unfound(error, settings.kind)}; "
            "expected an importable package.module:Class"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise TrainingError(f"optimizer.kind {settings.kind!r} is {found!r}; {EXPECTED}")
    signature = inspect.signature(found)
    try:
        signature.bind([], lr=settings.learning_rate, **settings.options)
    except TypeError as error:
        raise TrainingError(
            f"optimizer.kind {settings.kind!r} with options {dict(settings.options)}: {error}; {EXPECTED}"
        ) from None
    takes = {*signature.parameters}
    if not settings.decay_norms_and_biases and "weight_decay" not in takes:
        raise TrainingError(
            f"optimizer.decay_norms_and_biases is false, and {settings.kind} takes no weight_decay; leave it out"
        )
    return found


# -- state -------------------------------------------------------------------------------------------------------------


def pack(optimizer: Any, parameters: Mapping[str, nn.Parameter], settings: config.Optimizer) -> dict[str, Tensor]:
    """Give everything the optimizer remembers as tensors, by parameter and key. Raises TrainingError.

    Of AdamW these are its moments and step counts. What is no tensor is kept as a JSON text (PLAIN), for an optimizer
    of the user's own with the settings of its groups, which it may change.
    """
    found: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{name}/{key}"] = value
            else:
                plain[f"{name}/{key}"] = value
    if settings.own:
        for place, group in enumerate(optimizer.param_groups):
            for key, value in group.items():
                if isinstance(value, Tensor):
                    found[f"{GROUP}{place}/{key}"] = value
                elif key != "params":
                    plain[f"{GROUP}{place}/{key}"] = value
    if plain:
        try:
            text = json.dumps(plain).encode()
        except (TypeError, ValueError) as error:
            raise TrainingError(
                f"optimizer.kind {settings.kind!r} remembers what a checkpoint cannot hold: {error}; expected tensors, "
                "numbers, texts, and lists of these"
            ) from error
        found[PLAIN] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return _each_its_own(found)


def state_tensors(optimizer: Any) -> list[Tensor]:
    """List the tensors that the optimizer remembers of its parameters."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _each_its_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a tensor that shares its memory with an earlier one, as safetensors refuses such pairs."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = id(tensor) if tensor.numel() == 0 or not hasattr(tensor, "untyped_storage") else _address(tensor)
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _address(tensor: Tensor) -> int:
    from torch.distributed.tensor import DTensor

    return id(tensor) if isinstance(tensor, DTensor) else tensor.untyped_storage().data_ptr()


def unpack(
    optimizer: Any,
    parameters: Mapping[str, nn.Parameter],
    saved: Mapping[str, Tensor],
    placed: Callable[[Tensor, nn.Parameter], Tensor],
) -> None:
    """Have the optimizer continue from what `pack` gave; `placed` puts a tensor where its parameter is.

    A tensor of a parameter's own shape is sharded as the parameter is.
    """
    plain: dict[str, Any] = json.loads(saved[PLAIN].numpy().tobytes()) if PLAIN in saved else {}
    optimizer.state.clear()
    for full, value in (*saved.items(), *plain.items()):
        name, _, key = full.rpartition("/")
        if full == PLAIN:
            continue
        if name.startswith(GROUP):
            group = optimizer.param_groups[int(name.removeprefix(GROUP))]
            old = group.get(key)
            if isinstance(old, Tensor):
                value = value.to(old.device)
            group[key] = tuple(value) if isinstance(old, tuple) else value  # JSON has lists only
            continue
        parameter = parameters[name]
        if isinstance(value, Tensor) and key != "step":  # AdamW keeps its step count on the CPU
            value = placed(value, parameter) if value.ndim else value.to(parameter.device)
        optimizer.state[parameter][key] = value


# -- checks ------------------------------------------------------------------------------------------------------------


def check(run: config.Run) -> None:
    """Check the optimizer before a run: that it can be made, makes steps, and continues exactly from its state.

    Raises TrainingError.
    """
    settings = run.optimizer
    if settings.own:
        vectors = isinstance(run.model.train, config.Full)
        _check_own(settings, sharded=run.workers.learner.strategy == "fsdp2", vectors=vectors)
    else:
        _shipped(settings)


def _check_own(settings: config.Optimizer, *, sharded: bool, vectors: bool) -> None:
    find_own(settings)
    first, second = _trial(settings, vectors=vectors), _trial(settings, vectors=vectors)
    try:
        with isolated(settings.kind):
            _steps(first, 2)
            packed = {name: value.clone() for name, value in pack(first[0], first[1], settings).items()}
            for name, parameter in first[1].items():
                second[1][name].data.copy_(parameter.data)
            unpack(second[0], second[1], packed, lambda value, parameter: value)
            _steps(first, 1)
            _steps(second, 1)
    except TrainingError:
        raise
    except Exception as error:
        raise TrainingError(f"optimizer.kind {settings.kind!r} failed: {explained(error)}; {EXPECTED}") from error
    if not all(parameter.isfinite().all() for parameter in first[1].values()):
        raise TrainingError(f"optimizer.kind {settings.kind!r} makes weights that are not finite, from gradients of 1")
    if not any((parameter != 1).any() for parameter in first[1].values()):
        raise TrainingError(
            f"optimizer.kind {settings.kind!r} leaves the weights as they are after three steps with gradients of 1; "
            "see whether its learning rate is as it should be"
        )
    differing = [name for name, parameter in first[1].items() if not torch.equal(parameter, second[1][name])]
    if differing:
        raise TrainingError(
            f"optimizer.kind {settings.kind!r} does not continue from its `state` and `param_groups` as it went on by "
            "itself, so a resumed run would differ; have it keep there whatever it remembers"
        )
    others = sorted({key for parameter in first[1].values() for key in _of_other_shape(first[0], parameter)})
    if sharded and others:
        raise TrainingError(
            f"optimizer.kind {settings.kind!r} keeps {', '.join(others)} in another shape than the weights', which "
            "workers.learner.strategy=fsdp2 cannot split over ranks; set workers.learner.strategy=ddp"
        )


def _of_other_shape(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[str]:
    state = optimizer.state.get(parameter, {})
    return [key for key, v in state.items() if isinstance(v, Tensor) and v.ndim and v.shape != parameter.shape]


Trial = tuple[torch.optim.Optimizer, Mapping[str, nn.Parameter]]


def _trial(settings: config.Optimizer, *, vectors: bool = False) -> Trial:
    """Make the optimizer on a matrix of ones, and with `vectors` on a bias too: an adapter has matrices only."""
    shapes = {"weight": (SIDE, SIDE), **({"bias": (SIDE,)} if vectors else {})}
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    return make(settings, parameters), parameters


def _steps(trial: Trial, count: int) -> None:
    """Make steps with gradients of 1 and of -1 in turn by row."""
    optimizer, parameters = trial
    for _ in range(count):
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
            parameter.grad[::2] = -1
        optimizer.step(None)  # as accelerate calls it
        optimizer.zero_grad()


# -- memory ------------------------------------------------------------------------------------------------------------

SMALL = 4096
"""Fewest numbers of a parameter whose moments bitsandbytes keeps in 8 bits."""

BLOCK = 256
"""Numbers that share one scale in bitsandbytes' 8-bit moments."""

FLOAT = 4


def state_bytes(settings: config.Optimizer, sizes: Iterable[int]) -> int:
    """Return the bytes of what the optimizer keeps, for parameters of so many numbers each.

    For an optimizer of the user's own it is what it keeps of a matrix it is tried on, in proportion. Raises
    TrainingError where that cannot be made.
    """
    if settings.kind == "adamw":
        return sum(2 * FLOAT * size + FLOAT for size in sizes)
    if settings.kind == "adamw8bit":
        return sum(2 * (size + FLOAT * -(-size // BLOCK)) if size >= SMALL else 2 * FLOAT * size for size in sizes)
    trial = optimizer, parameters = _trial(settings)
    with isolated(settings.kind):
        _steps(trial, 1)
    kept = sum(tensor.nbytes for name, tensor in pack(optimizer, parameters, settings).items() if name != PLAIN)
    return round(sum(sizes) * kept / sum(parameter.numel() for parameter in parameters.values()))
