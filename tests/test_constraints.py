"""All that installing the project and its tests brings in has one version, on whatever day it is installed."""

import re
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

CONSTRAINTS = ROOT / "constraints.txt"
EXACT = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+")


def needed(name, extras=("",)):
    """The names of all packages that a package asks for here, and that those ask for."""
    found, waiting = set(), [(name, frozenset(extras))]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        for text in metadata.requires(one[0]) or ():
            asked = Requirement(text)
            if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in (*one[1], "")):
                waiting.append((canonicalize_name(asked.name), frozenset(asked.extras)))
    return {each for each, _ in found} - {name}


def test_every_installed_package_is_pinned_to_its_version():
    lines = CONSTRAINTS.read_text(encoding="utf-8").split()
    assert all(EXACT.fullmatch(line) for line in lines)
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    found = needed("pcpo-ray", ("test",))
    assert len(found) > 60
    here = {name: metadata.version(name).partition("+")[0] for name in found}  # what follows + is the build's
    assert {name: version for name, version in here.items() if pinned.get(name) != version} == {}
