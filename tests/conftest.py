"""Fixtures that are dear to make, once a session."""

import atexit
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # others would each import torch first
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would starve them beside another file's tests
os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="hidden", AWS_EC2_METADATA_DISABLED="true")

import hypothesis
import pytest
import torch

from pcpo_ray.config import files
from tests.support import FAULTS, ROOT, families, plugged, s3, small, warm

gc.disable()  # until all tests are imported: it visits the modules again and again, a third of the time this takes
torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")
WARM = Path(tempfile.mkdtemp(prefix="pcpo-")) / "warm"
os.environ.update(warm.environment(str(WARM)))  # before any module copies the environment for its commands
os.environ[FAULTS] = str(WARM.parent / "faults")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background, its children too
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup does: commands that tests start are to hear it
    signal.signal(signal.SIGHUP, lambda number, frame: None)


LONGEST = (
    "chaos/test_chaos.py",
    "fuzz/test_configs.py",
    "models/test_kernels.py",
    "chaos/test_vanished.py",
    "commands/plan/test_plan.py",
    "chaos/test_operate.py",
    "recipes/test_recipes.py",
    "workers/learner/test_ranked.py",
    "recipes/test_cards.py",
    "chaos/test_drawn.py",
    "recipes/test_switches.py",
    "cluster/test_faults_lost.py",
    "commands/test_api_page.py",
    "cluster/test_learner.py",
    "training/test_loop.py",
    "models/test_families.py",
    "training/test_endings.py",
    "workers/learner/test_lent.py",
    "words/test_hacked.py",
    "commands/study/test_running.py",
    "runs/test_stored.py",
    "process/test_terminal.py",
    "commands/check/test_check.py",
    "commands/plan/test_roles.py",
)
"""The files that take longest, so that no process is left with one of them when the others are done."""


def pytest_collection_modifyitems(items):
    """Run the longest files first; xdist keeps this order."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_collection_finish(session):
    """Keep the garbage collector from what is imported; have Ray's workers start warm in the tests that start any."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.enable()
    if session.config.option.collectonly or not any(
        item.get_closest_marker(mark) for item in session.items for mark in ("ray", "recipes", "chaos")
    ):
        return
    session.warm = subprocess.Popen([sys.executable, "-m", "tests.support.warm", str(WARM)], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not WARM.exists():
        assert session.warm.poll() is None, "tests/support/warm.py has ended"
        assert time.monotonic() < deadline, "tests/support/warm.py does not listen"
        time.sleep(0.1)


def pytest_sessionfinish(session):
    if hasattr(session, "warm"):
        session.warm.kill()
        session.warm.wait()
    shutil.rmtree(WARM.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def small_sd(tmp_path_factory):
    return small.stable_diffusion(tmp_path_factory.mktemp("models") / "small-sd")


@pytest.fixture(scope="session")
def small_flux(tmp_path_factory):
    return small.flux(tmp_path_factory.mktemp("models") / "small-flux")


@pytest.fixture(scope="session")
def small_flux_dev(tmp_path_factory):
    """As FLUX.1-dev: its guidance scale is an input of the network, its shift depends on the image's size."""
    folder = tmp_path_factory.mktemp("models")
    distilled = small.flux(folder / "small-flux-dev", guidance_embeds=True)
    return small.rescheduled(distilled, folder / "dynamic", use_dynamic_shifting=True)


@pytest.fixture(scope="session")
def small_sdxl(tmp_path_factory):
    return small.sdxl(tmp_path_factory.mktemp("models") / "small-sdxl")


@pytest.fixture(scope="session")
def small_sd3(tmp_path_factory):
    return small.sd3(tmp_path_factory.mktemp("models") / "small-sd3")


@pytest.fixture(scope="session")
def model_of_kind(request, tmp_path_factory):
    """The folder of a kind's small model, by the kind's name."""
    older = {"stable_diffusion": "small_sd", "sdxl": "small_sdxl", "sd3": "small_sd3", "flux": "small_flux_dev"}

    @cache
    def made(kind):
        if kind in older:
            return request.getfixturevalue(older[kind])
        return families.FAMILIES[kind].make(tmp_path_factory.mktemp("models") / f"small-{kind}")

    return made


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server's address; it forgets everything when it ends."""
    with s3.served() as address:
        yield address


@pytest.fixture(params=["file", "s3"])
def stored(request, tmp_path, monkeypatch):
    """A URL to keep runs at, and a cache folder of this test's own."""
    monkeypatch.setenv("PCPO_RAY_CACHE", str(tmp_path / "machine-a"))
    if request.param == "file":
        return f"file://{tmp_path}/storage/some%20runs"
    address = request.getfixturevalue("s3_server")
    return s3.bucket(address) + "/some/runs" + s3.options(address)


@pytest.fixture
def faulty_workers(monkeypatch):
    """Runs of this test have workers to which faults can be done; none is planned yet."""
    from tests.support import faults  # imports ray

    faults.forget()
    faults.install(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process; tests use several in one."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run pcpo-ray in a folder of its own: exit status, standard output, standard error."""
    from pcpo_ray.commands import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pcpo-ray", *map(str, arguments)])
        status, heard = 0, signal.getsignal(signal.SIGINT)
        try:
            app.main()
        except SystemExit as ending:
            status = int(ending.code or 0)
        finally:
            signal.signal(signal.SIGINT, heard)  # a command leaves its process deaf
        return status, *capsys.readouterr()

    yield call
    sys.modules.pop("mine", None)  # other tests have a module of that name too


@pytest.fixture(scope="session")
def hollow(small_sd, tmp_path_factory):
    """A config file whose model has no weights: loading it would be another error than the one expected."""
    folder = tmp_path_factory.mktemp("hollow")
    small.hollow(small_sd, folder / "small-sd")
    path = folder / "small.yaml"
    path.write_text(files.dump(small.run(folder / "small-sd")))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the modules of docs/plugging_in.md, from which they are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, code in plugged.EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(code)
    yield tmp_path
    for name in (*plugged.EXAMPLES, "mine"):
        sys.modules.pop(name, None)
