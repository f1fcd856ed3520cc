"""Classes and functions of the user's own, by import path: found, checked and called, with errors that name them.

A `PlugPoint` is a key of the config that takes one: a class, built with the config's `options`, that has the point's
method; or a function, which gets the options as keyword arguments in each call.
"""

import functools
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pcpo_ray.errors import PcpoError, nearest
from pcpo_ray.process.plugins import explained, isolated, resolve_class


@dataclass(frozen=True, kw_only=True)
class PlugPoint:
    """A key of the config that takes a class or function of the user's own.

    `method` is called with the `arguments`, in their order, and returns what `returns` says. `error` is raised for
    whatever is wrong.
    """

    noun: str
    method: str
    arguments: tuple[str, ...]
    returns: str
    error: type[PcpoError]

    def find(self, kind: str, options: Mapping[str, Any]) -> Any:
        """Import the class or function and check its signature, without building or calling it. Raises `error`."""
        try:
            found = resolve_class(kind)
        except Exception as error:  # the user's module may raise anything while it is imported
            raise self.error(
                f"{self.noun} {kind!r}: {unfound(error, kind)}; expected an importable package.module:name"
            ) from error
        method = getattr(found, self.method, None) if inspect.isclass(found) else found
        if not callable(method):
            raise self.error(f"{self.noun} {kind!r} is {found!r}, without a method {self.method}; {self.expected}")
        try:
            if inspect.isclass(found):
                inspect.signature(method).bind("self", *self.arguments)
                inspect.signature(found).bind(**options)
            else:
                inspect.signature(method).bind(*self.arguments, **options)
        except TypeError as error:
            raise self.error(f"{self.noun} {kind!r} with options {dict(options)}: {error}; {self.expected}") from None
        return found

    def make(self, kind: str, options: Mapping[str, Any]) -> Any:
        """Build the user's object, ready to be called: it has the method. Raises `error`."""
        found = self.find(kind, options)
        if not inspect.isclass(found):
            return SimpleNamespace(**{self.method: functools.partial(found, **options)})
        try:
            with isolated(kind):
                return found(**options)
        except Exception as error:  # a class of the user's own may raise anything while it is built
            raise self.error(
                f"{self.noun} {kind!r} cannot be built with options {dict(options)}: {explained(error)}"
            ) from error

    def call(self, made: Any, kind: str, *arguments: Any) -> Any:
        """Call the method, with its effects on the process kept from everybody else. Raises `error`."""
        try:
            with isolated(kind):
                return getattr(made, self.method)(*arguments)
        except Exception as error:
            raise self.failed(kind, error) from error

    def failed(self, kind: str, error: Exception) -> PcpoError:
        """Make the error for a call that raised."""
        return self.error(f"{self.noun} {kind!r} failed: {explained(error)}")

    def numbers(self, kind: str, value: Any, shape: Sequence[int]) -> np.ndarray:
        """Read what was returned as finite numbers of this shape. Raises `error`."""
        try:
            found = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.error(f"{self.noun} {kind!r} returned {value!r:.200}: {error}; {self.expected}") from None
        if found.shape != tuple(shape):
            raise self.error(
                f"{self.noun} {kind!r} returned numbers of shape {found.shape} where {tuple(shape)} was expected; "
                f"{self.expected}"
            )
        if not np.isfinite(found).all():
            raise self.error(f"{self.noun} {kind!r} returned numbers that are not finite: {found}; {self.expected}")
        return found

    @property
    def expected(self) -> str:
        """The words for what is expected at this key."""
        return (
            f"expected a class with a method {self.method}(self, {', '.join(self.arguments)}), or a function of "
            f"({', '.join(self.arguments)}), that returns {self.returns}"
        )


def unfound(error: BaseException, kind: str) -> str:
    """Describe why an import path leads to nothing, with the nearest name that is there."""
    module, _, name = kind.partition(":")
    guess = ""
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        guess = nearest(module, sorted(path.stem for path in Path.cwd().glob("*.py")))
    elif isinstance(error, AttributeError) and module in sys.modules:
        there = vars(sys.modules[module])
        guess = nearest(name, [key for key, value in there.items() if callable(value) and not key.startswith("_")])
    return f"{explained(error)}{guess}"
