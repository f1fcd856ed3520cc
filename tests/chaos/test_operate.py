"""A run in a cluster of three nodes, as it is operated: submitted, looked at, resized while it goes on, stopped."""

import json
import signal
import subprocess
import time

import pytest

from pcpo_ray.config import files
from tests.chaos.nodes import Nodes
from tests.support import small

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

REWARD = """
import time

class Redness:
    def score(self, images, prompts):
        time.sleep(0.3)  # the commands that are tried need the processor, too
        red, green, blue = images.mean(axis=(1, 2)).T / 255
        return red - (green + blue) / 2
"""


@pytest.fixture
def nodes():
    with Nodes() as found:
        yield found


@pytest.fixture
def submission(small_sd, tmp_path):
    """A folder with a reward of the user's own, a config elsewhere, and where runs are."""
    spot, fixed = "resources: {spot: 1}, cpus: 0.1", "resources: {fixed: 1}, cpus: 0.1"
    run = small.run(
        small_sd,
        name="spot",
        steps=2000,
        rewards="[{kind: 'my_rewards:Redness'}]",
        evaluation__every=1000,
        checkpoints__every=5,
        workers__samplers=f"{{workers: 1, {spot}}}",
        workers__scorers=f"{{workers: 1, {fixed}}}",
        workers__learner=f"{{{fixed}}}",
    )
    project, config = tmp_path / "project", tmp_path / "spot.yaml"
    project.mkdir()
    (project / "my_rewards.py").write_text(REWARD)
    (project / "runs").mkdir()
    (project / "runs" / "large.bin").write_bytes(b"")
    config.write_text(files.dump(run))
    return project, config, tmp_path / "runs"


def within(seconds, look, right):
    """The first of what `look` gives of which `right`."""
    deadline = time.monotonic() + seconds
    while not ((found := look()) and right(found)):
        assert time.monotonic() < deadline, f"waited {seconds} s; the last was {found}"
        time.sleep(2.0)
    return found


def test_a_submitted_run_is_seen_resized_and_stopped_and_nothing_is_left(nodes, submission, tmp_path):
    project, config, runs = submission
    nodes.add(resources='{"spot": 2}')
    nodes.add(resources='{"spot": 1}')

    def status(*words):
        done = nodes.pcpo_ray("status", "spot", "--json", "--address", nodes.address, *words)
        return json.loads(done.stdout) if done.returncode in (0, 11) else None

    # refused, each at once and by name
    submit = ["submit", config, "--runs", runs]
    refused = {
        "refuses this token": (nodes.http, {"RAY_AUTH_TOKEN": "wrong"}),
        "wants a token": (nodes.http, {"RAY_AUTH_MODE": "disabled"}),
        "no token for the Ray cluster": (nodes.http, {"RAY_AUTH_TOKEN": "", "HOME": str(tmp_path)}),
        "no Ray dashboard at": ("http://127.0.0.1:1", {}),
    }
    for words, (address, environment) in refused.items():
        started = time.monotonic()
        done = nodes.pcpo_ray(*submit, "--address", address, **environment)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert time.monotonic() - started < 30
    for words, environment in (
        ("refuses this token", {"RAY_AUTH_TOKEN": "wrong"}),
        ("wants a token", {"RAY_AUTH_MODE": "disabled"}),
    ):
        done = nodes.pcpo_ray("status", "spot", "--address", nodes.address, **environment)
        assert done.returncode == 1 and words in done.stderr, done.stderr

    log = tmp_path / "submit.log"
    with log.open("w") as file:
        submitted = subprocess.Popen(
            nodes.words(*submit, "--address", nodes.http),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=nodes.environment,
            cwd=project,
        )
    try:
        found = within(400, status, lambda seen: seen["step"] >= 2)
        assert (found["run"], found["state"], found["steps"]) == ("spot", "training", 2000)
        assert -1 < found["reward"] < 1 and found["age"] < 30 and found["samplers"]["wanted"] == 1
        assert found["samplers"]["versions"].keys() == {"sampler-0"}

        done = nodes.pcpo_ray(*submit, "--address", nodes.http)
        assert done.returncode == 1 and "a run named 'spot' is going on in this cluster, as job spot-" in done.stderr
        done = nodes.pcpo_ray("status", "other", "--address", nodes.address)
        assert done.returncode == 14 and "no run named 'other'" in done.stderr and "there are spot" in done.stderr

        done = nodes.pcpo_ray("scale", "spot", "--samplers", 3, "--max-staleness", 1, "--address", nodes.address)
        assert done.returncode == 0, done.stderr
        assert "samplers: was 1, is 3" in done.stdout and "max_staleness: was 0, is 1" in done.stdout

        def three_have_sampled(seen):
            return len(versions := seen["samplers"]["versions"]) == 3 and None not in versions.values()

        within(400, status, three_have_sampled)

        done = nodes.pcpo_ray("chaos", "spot", "--kill", "sampler", "--count", 1, "--address", nodes.http)
        assert done.returncode == 0 and done.stdout.startswith("fault 1, sampler, at step "), done.stdout + done.stderr
        within(400, status, lambda seen: seen["samplers"]["losses"] == {"died": 1})

        done = nodes.pcpo_ray("scale", "spot", "--samplers", 1, "--address", nodes.http)  # from outside
        assert done.returncode == 0 and done.stdout.startswith("samplers: was 3, is 1"), done.stdout + done.stderr
        within(400, status, lambda seen: seen["samplers"]["ready"] == 1)
        events = map(json.loads, (runs / "spot" / "events.jsonl").read_text().splitlines())
        assert [event["samplers"] for event in events if event["kind"] == "resized"] == [3, 1]

        again = ["logs", "spot", "--follow", "--address", nodes.http]
        following = nodes.start(*again)
        while (line := following.stdout.readline()) and " step 2/" not in line:
            pass
        following.send_signal(signal.SIGINT)
        rest = following.communicate(timeout=120)[0]
        assert following.returncode == 130 and f"goes on; see its log again with: pcpo-ray {' '.join(again)}" in rest

        done = nodes.pcpo_ray("stop", "spot", "--address", nodes.address)
        assert done.returncode == 0, done.stderr
        step = int(done.stdout.partition("after step ")[2].partition(" ")[0])
        saved = runs / "spot" / "checkpoints" / f"step-{step:06d}"
        assert str(saved) in done.stdout and (saved / "state.json").is_file()
        assert submitted.wait(timeout=300) == 0, log.read_text()
    finally:
        submitted.kill()
    text = log.read_text()
    assert f"step {step}/2000" in text and "report: " in text and "pcpo-ray scale spot --address" in text
    done = nodes.pcpo_ray("logs", "spot", "--address", nodes.http)
    assert done.returncode == 0 and f"step {step}/2000" in done.stdout
    done = nodes.pcpo_ray("status", "spot", "--address", nodes.address)
    assert done.returncode == 12 and done.stdout.startswith("run        spot: stopped"), done.stdout + done.stderr
    at_work = [line for line in nodes.processes().values() if "Actor" in line or "pcpo" in line]
    assert not at_work, at_work
    # where Python keeps bytecode, the check before the upload leaves it beside the reward, as any import does
    assert {path.name for path in project.iterdir()} - {"__pycache__"} == {"my_rewards.py", "runs"}
