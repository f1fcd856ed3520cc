"""Import paths of the user's own, looked up in files without importing anything: their modules may take seconds.

Only what cannot be right is refused. Where a module's source does not tell, nothing is said, and the import decides.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path

from pcpo_ray.errors import ConfigError, nearest

DYNAMIC = frozenset({"__getattr__", "__path__", "__dict__", "__class__", "modules"})
"""Names and attributes in a source by which it may have names that are not written in it."""

BUILDERS = frozenset({"globals", "locals", "vars", "setattr", "exec", "eval"})
"""Built-in functions with which a source may do the same."""

EXPECTED = "expected an importable package.module:name"


@dataclass(frozen=True)
class Source:
    """A module's file and what it says."""

    file: Path
    tree: ast.Module

    @property
    def tells(self) -> bool:
        """Return whether all names of the module are written in it."""
        for node in ast.walk(self.tree):
            match node:
                case ast.Global() | ast.ImportFrom(names=[ast.alias(name="*")]):
                    return False
                case ast.Name(id=name) if name in DYNAMIC | BUILDERS:
                    return False
                case ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.alias(name=name) if name in DYNAMIC:
                    return False
        return True


def check(key: str, path: str) -> None:
    """Check that `package.module:name`, given at a key of the config, can be there. Raises ConfigError."""
    module, _, name = path.partition(":")
    first = name.partition(".")[0]
    if module in sys.modules or not all(part.isidentifier() for part in (*module.split("."), first)):
        return  # its names are those of the imported module, or nobody can have meant a module
    spec = _found(key, path, module)
    if spec is None or (source := _source(key, path, spec)) is None or not source.tells:
        return
    names = set(_bound(source.tree.body))
    if first in names or first.startswith("__") or _inside(spec, first) is not None:
        return
    guess = nearest(first, sorted(one for one in names if not one.startswith("_")))
    raise ConfigError(
        f"{key}: got {path!r}, and {source.file} has no {first!r}{guess}; {EXPECTED}: define it there, or give a name "
        "that is there"
    )


def _found(key: str, path: str, module: str) -> ModuleSpec | None:
    """Find where a module is; None where that cannot be told. Raises ConfigError where it is nowhere."""
    here = Path.cwd()
    top, *parts = module.split(".")
    places = sys.path if str(here) in sys.path else [str(here), *sys.path]  # as resolve_class will have it
    spec = PathFinder.find_spec(top, places)
    if spec is None:
        if _elsewhere(top):
            return None
        guess = nearest(top, sorted(file.stem for file in here.glob("*.py")))
        raise ConfigError(
            f"{key}: got {path!r}, and there is no module {top!r} in {here} or installed{guess}; {EXPECTED}"
        )
    for part in parts:
        inner = _inside(spec, part)
        if inner is None:
            below = list(spec.submodule_search_locations or ())
            if spec.origin is None:
                open_ended = not below
            else:  # it may make modules of its own
                open_ended = (source := _source(key, path, spec)) is None or not source.tells
            if open_ended:
                return None
            if module == f"{spec.name}.py" and spec.origin is not None:
                raise ConfigError(
                    f"{key}: got {path!r}, a file's name (did you mean {path.replace('.py:', ':', 1)}?); {EXPECTED}"
                )
            there = {file.stem for folder in below for file in Path(folder).glob("*.py")}
            raise ConfigError(
                f"{key}: got {path!r}, and there is no module '{spec.name}.{part}' in "
                f"{below[0] if below else spec.origin}{nearest(part, sorted(there))}; {EXPECTED}"
            )
        spec = inner
    return spec


def _inside(spec: ModuleSpec, part: str) -> ModuleSpec | None:
    """Find a module inside a package; None if there is none."""
    name, below = f"{spec.name}.{part}", spec.submodule_search_locations
    try:
        return PathFinder.find_spec(name, below) if below else None
    except KeyError:  # a folder without __init__.py, whose places follow from the package once that is imported
        return ModuleSpec(name, None)


def _elsewhere(top: str) -> bool:
    """Return whether a module is found by other means than files, as built-in ones are."""
    try:
        return importlib.util.find_spec(top) is not None
    except ValueError:  # a module without a spec, which is there
        return True


def _source(key: str, path: str, spec: ModuleSpec) -> Source | None:
    """Read a module's source; None if it has none. Raises ConfigError if it is not Python."""
    if spec.origin is None or not isinstance(spec.loader, SourceFileLoader):
        return None
    file = Path(spec.origin)
    try:
        return Source(file, ast.parse(file.read_bytes()))
    except SyntaxError as error:
        raise ConfigError(
            f"{key}: got {path!r}, and {file}, line {error.lineno} is not Python: {error.msg}; fix it"
        ) from None
    except (OSError, ValueError, RecursionError):  # the import will say what is wrong
        return None


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind, those of blocks inside them too, and not those inside functions."""
    todo: list[ast.AST] = [*body]
    while todo:
        node = todo.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
                continue
            case ast.alias(name=name, asname=other):
                yield other or name.partition(".")[0]
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield name
        todo += ast.iter_child_nodes(node)
