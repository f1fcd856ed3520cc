"""A run kept in storage: any machine goes on with it to the bit, and nothing that is not whole counts."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

import pcpo_ray
from pcpo_ray.commands import next_steps, opening
from pcpo_ray.config.files import dump
from pcpo_ray.errors import AwayError, CheckpointError, RunError, TakenOverError
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import CONFIG, INPUTS
from pcpo_ray.runs.storage import Storage
from pcpo_ray.runs.stored import StoredFolder
from pcpo_ray.runs.urls import child
from pcpo_ray.runs.writer import WRITER
from pcpo_ray.training import inputs, monitors
from pcpo_ray.training.recorder import Recorder
from tests.support import s3, small
from tests.support.running import go, parameters, same, saved


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Go on as another machine, with a cache of its own."""

    def become(name):
        monkeypatch.setenv("PCPO_RAY_CACHE", str(tmp_path / name))

    become("machine-a")
    return become


def run_at(stored, name):
    return StoredFolder.at(child(stored, name))


def made(stored, name="mine", model="nowhere", **changes):
    """A run that has just begun, and its folder."""
    home = run_at(stored, name)
    recorder = Recorder.create(home, small.run(model, **changes))
    return recorder.home, recorder


def records(home, name):
    """What storage has of a file that the run recorded."""
    with dataclasses.replace(home, writer=None).fetched(records=True) as read:
        return (read.local / name).read_bytes() if (read.local / name).is_file() else b""


def kept(home, step):
    """A checkpoint of a step, here and in storage."""
    saved(home.local, step)
    home.push_checkpoint(step)


def of_checkpoints(home):
    return sorted({name.split("/")[1] for name in Storage(home.url).names("checkpoints")})


def test_a_run_goes_on_elsewhere_to_the_bits_of_an_undisturbed_one(small_sd, stored, tmp_path, machine):
    settings = {"steps": 4, "optimizer__average": 0.9, "advantage": "{kind: prompt_history}", "combine": "advantages"}
    home = run_at(stored, "mine")
    go(small.run(small_sd, **{**settings, "steps": 2}), home)
    machine("machine-b")
    home = run_at(stored, "mine")
    assert not home.local.exists() and home.started()
    recorder = go(small.run(small_sd, **settings), home, found=True)
    assert "machine-b" in str(recorder.folder)
    go(small.run(small_sd, **settings), tmp_path / "whole")
    home.push_records()
    machine("machine-c")
    with run_at(stored, "mine").fetched(records=True, newest=True) as read:
        ends = [checkpoints.read(checkpoints.folder_for(folder, 4)) for folder in (tmp_path / "whole", read.local)]
        assert same(*(end.parameters for end in ends)) and same(*(end.averaged for end in ends))
        rows = [json.loads(line) for line in (read.local / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
        files = {path.relative_to(read.local).as_posix() for path in read.local.rglob("*") if path.is_file()}
        steps = [f"step-{step:06d}" for step in (1, 2, 3, 4)]
        assert files >= {f"scores.parquet/{step}.parquet" for step in steps} | {"events.jsonl", "config.yaml"}
        assert files >= {f"images/step-000004/00{n}-0{m}.png" for n in (0, 1) for m in (0, 1)}
    assert not (tmp_path / "machine-c" / "runs").exists()


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_a_start_that_is_interrupted_deletes_nobody_elses_run(stored, machine, monkeypatch):
    """A second machine starts the run in the moment in which the first looks whether it is alone."""
    started = []

    def interrupted(home, token, *, new):
        machine("machine-b")
        monkeypatch.setattr(StoredFolder, "_announce", announce)
        other, recorder = made(stored)
        elsewhere = dataclasses.replace(token, id=other.writer, host="machine-b", machine="another")
        Storage(other.url).write(WRITER, elsewhere.text.encode())
        started.append(recorder)
        raise KeyboardInterrupt

    announce = StoredFolder._announce
    monkeypatch.setattr(StoredFolder, "_announce", interrupted)
    monkeypatch.setattr(inputs, "of_run", lambda run: {})
    home = run_at(stored, "mine")
    with pytest.raises(KeyboardInterrupt):
        opening.create(home, small.run("nowhere"), lambda line: None)
    assert not home.local.exists() and run_at(stored, "mine").started()
    started[0].home.push_records()


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_what_a_run_records_while_it_is_being_taken_over_is_kept(stored, machine, monkeypatch):
    """On another machine, which hashes a model's files between its fetching of the records and its claim."""
    home, recorder = made(stored)

    def step(number):
        recorder.record("train", number, {"reward_mean": 0.5})
        recorder.samples("scores.parquet", number, {"step": [number]})
        home.push_records()
        kept(home, number)

    def meanwhile(*arguments, **options):
        step(2)
        return opening.Changes(config=[], files=[], own=[])

    step(1)
    machine("machine-b")
    monkeypatch.setattr(opening, "changes", meanwhile)
    other, found = opening.resume(run_at(stored, "mine"), small.run("nowhere"), lambda line: None)
    assert found == 2 and [row["step"] for row in other.metrics()] == [1, 2]
    assert [json.loads(line)["step"] for line in records(other.home, "metrics.jsonl").splitlines()] == [1, 2]
    assert (other.folder / "scores.parquet" / "step-000002.parquet").is_file()
    assert not [path for path in other.folder.parent.iterdir() if "unfinished" in path.name]
    with pytest.raises(TakenOverError):
        step(3)


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_records_are_in_storage_before_the_checkpoint_that_they_led_to(small_sd, stored, monkeypatch):
    push, seen = StoredFolder.push_checkpoint, []

    def pushed(home, step):
        rows = [json.loads(line) for line in records(home, "metrics.jsonl").splitlines()]
        seen.append((step, max(row["step"] for row in rows if row["kind"] == "train")))
        push(home, step)

    monkeypatch.setattr(StoredFolder, "push_checkpoint", pushed)
    home = run_at(stored, "mine")
    go(small.run(small_sd, steps=3, evaluation__every=3), home)
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_only_changes_are_sent_and_dropped_records_are_dropped_there(stored, machine, monkeypatch):
    home, recorder = made(stored)
    for step in (1, 2):
        recorder.samples("scores.parquet", step, {"step": [step]})
    recorder.record("train", 1, {"loss": 1.0})
    home.push_records()
    sent, put = [], Storage.put

    def noting(storage, files, **options):
        sent.extend(sorted(files))
        put(storage, files, **options)

    monkeypatch.setattr(Storage, "put", noting)
    home.push_records()
    recorder.event("fault", message="x")
    recorder.rewind(1)
    home.push_records()
    assert sent == []
    assert records(home, "metrics.jsonl") == (home.local / "metrics.jsonl").read_bytes()
    assert records(home, "events.jsonl") == (home.local / "events.jsonl").read_bytes()
    assert [name for name in Storage(home.url).names() if "scores" in name] == ["scores.parquet/step-000001.parquet"]


@pytest.mark.parametrize("cut", ["state.json", "trainable.safetensors"])
def test_a_checkpoint_whose_upload_was_cut_short_is_passed_over(stored, machine, cut):
    home, _ = made(stored)
    for step in (1, 2):
        kept(home, step)
    Storage(home.url).delete([f"checkpoints/step-000002/{cut}"])
    machine("machine-b")
    said = []
    assert run_at(stored, "mine").newest(said.append) == 1
    assert ["mine/checkpoints/step-000002 is not whole" in line for line in said] == [True]
    with run_at(stored, "mine").fetched(newest=True, say=said.append) as read:
        assert checkpoints.newest(read.local, pytest.fail) == checkpoints.folder_for(read.local, 1)


def test_state_json_comes_last_and_goes_first(stored, machine, monkeypatch):
    home, _ = made(stored)
    done = []
    for what in ("put", "replace", "delete", "delete_folder"):
        method = getattr(Storage, what)

        def noting(storage, names, *more, what=what, method=method, **options):
            done.append((what, names if isinstance(names, str) else sorted(names)))
            return method(storage, names, *more, **options)

        monkeypatch.setattr(Storage, what, noting)
    kept(home, 1)
    folder = "checkpoints/step-000001"
    weights = [f"{folder}/optimizer.safetensors", f"{folder}/trainable.safetensors"]
    gone = [("delete", [f"{folder}/state.json"]), ("delete_folder", folder)]
    assert done == [*gone, ("put", weights), ("replace", f"{folder}/state.json")]
    kept(home, 2)
    done.clear()
    home.prune(1, 99)
    assert done == gone
    assert of_checkpoints(home) == ["step-000002"]


def test_storage_keeps_the_newest_and_a_machine_the_last(stored, machine):
    home, _ = made(stored)
    for step in (1, 2, 10):
        kept(home, step)
        home.prune(2, step)
    assert of_checkpoints(home) == ["step-000002", "step-000010"]
    assert [folder.name for folder in checkpoints.all_checkpoints(home.local)] == ["step-000010"]


def test_a_checkpoint_not_sent_before_a_kill_is_sent_by_the_next_process(stored, machine):
    home, _ = made(stored)
    kept(home, 1)
    saved(home.local, 2)
    assert home.newest(pytest.fail) == 2
    assert of_checkpoints(home) == ["step-000001", "step-000002"]


def test_a_fetched_checkpoint_is_seen_to_be_what_was_sent(stored, machine):
    home, _ = made(stored)
    kept(home, 1)
    Storage(home.url).write("checkpoints/step-000001/trainable.safetensors", b"changed")
    machine("machine-b")
    elsewhere = run_at(stored, "mine")
    with pytest.raises(CheckpointError, match=r"trainable\.safetensors is cut short .*delete its state\.json"):
        elsewhere.fetch_checkpoint(1)
    assert checkpoints.all_checkpoints(elsewhere.local) == []
    with pytest.raises(CheckpointError, match=r"no whole checkpoint at .*mine/checkpoints/step-000007"):
        elsewhere.fetch_checkpoint(7)


def test_a_checkpoint_left_by_an_earlier_run_of_that_name_is_replaced(stored, machine):
    home, _ = made(stored)
    kept(home, 1)
    machine("machine-b")
    elsewhere = run_at(stored, "mine")
    stale = saved(elsewhere.local, 1)
    text = (stale / "state.json").read_text()
    (stale / "state.json").write_text(text.replace('"version": 1', '"version": 9'))
    assert checkpoints.verify(stale)["version"] == 9
    assert checkpoints.read(elsewhere.fetch_checkpoint(1)).version == 1


def test_of_several_ranks_on_a_machine_one_fetches(stored, machine, monkeypatch):
    home, _ = made(stored)
    kept(home, 1)
    machine("machine-b")
    elsewhere = run_at(stored, "mine")
    got, get, failed = [], Storage.get, []

    def getting(storage, files):
        got.append(len(files))
        time.sleep(0.2)
        get(storage, files)

    def fetch():
        try:
            checkpoints.read(elsewhere.fetch_checkpoint(1))
        except BaseException as error:
            failed.append(error)

    monkeypatch.setattr(Storage, "get", getting)
    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (failed, got) == ([], [3])


# -- a folder that is there, and storage ------------------------------------------------------------------------------


def test_the_last_writers_own_folder_goes_on_with_what_it_has_more(stored, machine):
    home, recorder = made(stored)
    recorder.event("fault", message="never sent")
    home.take_over(pytest.fail)
    home.claim().push_records()
    assert b"never sent" in records(home, "events.jsonl")


def test_a_folder_of_a_run_that_went_on_elsewhere_is_set_aside_not_lost(stored, machine):
    home, recorder = made(stored)
    recorder.event("fault", message="only here")
    machine("machine-b")
    elsewhere = run_at(stored, "mine")
    elsewhere.take_over(lambda line: None)
    elsewhere = elsewhere.claim()
    Recorder(elsewhere, recorder.run).event("fault", message="only there")
    elsewhere.push_records()
    machine("machine-a")
    said = []
    home.take_over(said.append)
    assert "only there" in (home.local / "events.jsonl").read_text()
    (aside,) = (path for path in home.local.parent.iterdir() if path != home.local)
    assert "only here" in (aside / "events.jsonl").read_text() and str(aside) in said[0]


def test_a_driver_whose_run_was_taken_over_stops(stored, machine):
    home, recorder = made(stored)
    machine("machine-b")
    elsewhere = run_at(stored, "mine")
    elsewhere.take_over(lambda line: None)
    elsewhere = elsewhere.claim()
    saved(home.local, 1)
    recorder.event("fault", message="too late")
    for write in (
        home.push_records,
        lambda: home.push_checkpoint(1),
        lambda: home.prune(1, 99),
        lambda: home.set_aside_after(0),
        home.discard,
    ):
        with pytest.raises(
            TakenOverError, match=r"process \d+ on .* has taken over the run .*mine; this process writes no"
        ):
            write()
    assert b"too late" not in records(home, "events.jsonl")
    assert Storage(home.url).names("checkpoints") == [] and elsewhere.started()


def test_a_run_that_is_in_storage_is_not_started_again(stored, machine):
    made(stored)
    machine("machine-b")
    with pytest.raises(RunError, match=r"mine exists; continue it with --resume"):
        run_at(stored, "mine").claim_new(pytest.fail)


def test_a_start_that_was_cut_short_can_be_made_again(stored, machine):
    home = run_at(stored, "mine")
    home.claim_new(pytest.fail)
    home.local.mkdir(parents=True)
    assert Storage(home.url).names() == [WRITER] and not home.started()
    said = []
    home.claim_new(said.append)
    assert "of which storage has nothing, is now" in said[0] and not home.local.exists()


def test_a_run_that_did_not_start_is_forgotten_everywhere(stored, machine):
    home, _ = made(stored)
    home.discard()
    assert Storage(home.url).names() == [] and not home.local.exists()


def test_a_run_that_is_not_there_is_answered_with_those_that_are(stored, machine):
    made(stored, "there")
    absent = run_at(stored, "absent")
    with pytest.raises(RunError, match=r"no run at .*absent; in .*runs there are there$"), absent.fetched():
        pass
    with pytest.raises(RunError, match=r"no run at .*absent to resume; leave out --resume"):
        absent.take_over(pytest.fail)


@pytest.fixture
def away(monkeypatch):
    """Have one of Storage's methods not answer for so many seconds."""

    def begin(what, seconds):
        method, until, asked = getattr(Storage, what), time.monotonic() + seconds, []

        def failing(storage, *arguments, **options):
            asked.append(what)
            if time.monotonic() < until:
                raise AwayError("away")
            return method(storage, *arguments, **options)

        monkeypatch.setattr(Storage, what, failing)
        return asked

    return begin


@pytest.mark.parametrize("stored", ["file"], indirect=True)
@pytest.mark.parametrize("what", ["put", "write", "delete", "read"])
def test_storage_that_is_away_for_a_while_is_asked_again_and_costs_nothing(stored, machine, away, what):
    home, recorder = made(stored)
    saved(home.local, 1)
    recorder.event("fault", message="x")
    asked = away(what, 1.5)
    home.push_records()
    home.push_checkpoint(1)
    assert len(asked) > 1 and home.newest(pytest.fail) == 1 and checkpoints.read(home.fetch_checkpoint(1)).version == 1
    assert b'"x"' in records(home, "events.jsonl")


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_while_storage_is_away_records_and_pruning_wait_for_the_next_time(stored, machine, away):
    home, recorder = made(stored)
    for step in (1, 2):
        kept(home, step)
    away("write", 1.0), away("delete", 1.0)
    recorder.event("fault", message="x")
    recorder.push()
    home.prune(1, 99)
    assert recorder.recent[-1].kind == "unsent" and "away" in recorder.recent[-1].details["message"]
    time.sleep(1.0)
    recorder.push()
    home.prune(1, 99)
    assert b'"unsent"' in records(home, "events.jsonl") and of_checkpoints(home) == ["step-000002"]


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_of_two_who_start_a_run_at_once_on_two_machines_one_goes_on(stored, machine, monkeypatch):
    monkeypatch.setattr("pcpo_ray.runs.stored.SETTLING", 0.3)
    machine("machine-a")
    homes = [run_at(stored, "mine")]
    machine("machine-b")
    homes.append(run_at(stored, "mine"))
    for home in homes:
        home.claim_new(pytest.fail)
        home.local.mkdir(parents=True)
    found = []

    def claim(home):
        try:
            found.append(home.claim(new=True))
        except RunError as error:
            found.append(error)

    threads = [threading.Thread(target=claim, args=(home,)) for home in homes]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(30)
    claimed = [one for one in found if isinstance(one, StoredFolder)]
    assert len(claimed) == 1
    claimed[0].push_records()
    (refused,) = (one for one in found if one not in claimed)
    assert "has just been started or resumed by process" in str(refused) or "has taken over" in str(refused)


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_a_run_under_way_here_is_neither_set_aside_nor_resumed(stored, machine, monkeypatch):
    home, _ = made(stored)
    code = "import sys; from pcpo_ray.runs.places import folder_at; home = folder_at(sys.argv[1]); "
    for does in ("home.take_over(print); home.claim()", "home.claim_new(print)"):
        if "new" in does:
            Storage(home.url).delete(Storage(home.url).names())
        done = subprocess.run([sys.executable, "-c", code + does, home.url], capture_output=True, text=True, timeout=60)
        assert f"is being written by process {os.getpid()} on" in done.stderr, done.stderr
    assert [path.name for path in home.local.parent.iterdir()] == [home.local.name]


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_what_only_begins_like_a_checkpoint_is_left_alone_in_storage_too(stored, machine):
    home, _ = made(stored)
    for step in (1, 2, 3):
        kept(home, step)
    storage = Storage(home.url)
    names = [
        f"{place}/step-{name}/state.json" for place in ("checkpoints", "set-aside") for name in ("1", "000001-best")
    ]
    names += ["checkpoints/step-000009", "checkpoints/step-000002.bak"]
    for name in names:
        storage.write(name, b"mine")
    assert home.steps() == [1, 2, 3] and home.newest(pytest.fail) == 3
    home.prune(1, 99)
    home.set_aside_after(0)
    assert home.steps() == [] and storage.there(names) == names


@pytest.mark.chaos
def test_storage_that_fails_in_mid_run_leaves_what_was_recorded(small_sd, s3_server, machine, monkeypatch):
    home = StoredFolder.at(f"{s3.bucket(s3_server)}/mine{s3.options(s3_server)}")
    save, saves = StoredFolder.push_checkpoint, []

    def failing(folder, step):
        saves.append(step)
        if step == 2 and saves.count(2) == 1:
            with s3.guarded(s3_server):
                save(folder, step)
        save(folder, step)

    monkeypatch.setattr(StoredFolder, "push_checkpoint", failing)
    run = small.run(small_sd, steps=3)
    with pytest.raises(RunError, match=r"mine .*cannot be read: .*give this process credentials"):
        go(run, home)
    monkeypatch.setattr(StoredFolder, "push_checkpoint", save)
    recorder = go(run, home, found=True)
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == [1, 2, 3]
    assert saves[:2] == [1, 2] and of_checkpoints(home) == [f"step-{n:06d}" for n in (1, 2, 3)]


# -- the commands -----------------------------------------------------------------------------------------------------


def test_every_command_works_on_a_run_in_storage(
    command,
    small_sd,
    stored,
    tmp_path,
    machine,
):
    path = tmp_path / "small.yaml"
    path.write_text(dump(small.run(small_sd)))
    run = run_at(stored, "small")
    status, said, errors = command("train", path, "--local", "--runs", stored, "--resume-if-started")
    assert (status, errors) == (0, "")
    assert f"{run.place} is worked on in {run.local}" in said.replace("\n", "")
    assert {"report.html", CONFIG, INPUTS} <= set(Storage(run.url).names())
    status, _, errors = command("train", path, "--local", "--runs", stored)
    assert status == 1 and "exists; continue it with --resume" in errors

    machine("machine-b")
    other = shutil.copytree(small_sd, tmp_path / "other-sd")
    (other / "unet" / "config.json").write_text((other / "unet" / "config.json").read_text() + " ")
    status, _, errors = command("train", path, f"model.path={other}", "--local", "--runs", stored, "--resume")
    assert status == 1 and f"{other}/unet/config.json is not the file that the run began with" in errors
    status, said, errors = command("train", path, "steps=3", "--local", "--runs", stored, "--resume-if-started")
    assert (status, errors) == (0, "")
    assert "resuming small after step 2" in said
    events = [json.loads(line) for line in records(run, "events.jsonl").splitlines()]
    assert [event["kind"] for event in events if event["kind"] in ("started", "resumed", "finished")] == [
        *("started", "finished", "started", "resumed", "finished")
    ]

    machine("machine-c")
    status, said, _ = command("evaluate", run.url, "--local")
    assert status == 0 and "small, step 3, 2 held-out prompts" in said
    status, said, _ = command("sample", run.url, "a red star", "--with", f"{run.url}=0,1", "--out", "drawn.png")
    assert status == 0 and (tmp_path / "drawn.png").is_file()
    Storage(run.url).delete(["report.html"])
    status, said, _ = command("report", run.url)
    assert status == 0 and f"report: {run.place}/report.html" in said.replace("\n", "")
    assert b"<html" in (Storage(run.url).read("report.html") or b"")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "machine-c").exists()


def test_storage_that_cannot_be_reached_is_said_before_anything_is_loaded(
    command,
    hollow,
    tmp_path,
    machine,
):
    url = f"s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:{s3.free_port()}"
    for options in ([], ["--resume"], ["--resume-if-started"]):
        started = time.monotonic()
        status, _, errors = command("train", hollow, "--local", "--runs", url, *options)
        assert time.monotonic() - started < 30
        assert status == 1 and errors.startswith("error: s3://bucket/runs/small (endpoint 127.0.0.1:")
        assert "see that it can be reached" in errors and errors.count("error: ") == 1
    for order in (["evaluate"], ["sample", "a star"], ["report"]):
        status, _, errors = command(order[0], url.replace("/runs", "/runs/small"), *order[1:])
        assert status == 1 and errors.startswith("error: s3://bucket/runs/small (endpoint 127.0.0.1:")
    assert list((tmp_path / "machine-a").rglob("*")) == []


def test_a_start_that_fails_leaves_nothing_in_storage(command, hollow, stored, machine):
    status, _, errors = command("train", hollow, "--local", "--runs", stored)
    assert status == 1 and "cannot be loaded" in errors
    assert Storage(run_at(stored, "small").url).names() == []


def test_what_to_do_next_with_a_stored_run_can_be_done(small_sd, stored, machine):
    home, recorder = made(stored, model=small_sd)
    kept(home, 2)
    recorder.close()
    home.push_records()
    machine("machine-b")
    found = pcpo_ray.load_run(home.url)
    lines = next_steps.after(found, "pcpo-ray train a.yaml --resume")
    (sample,) = [line for line in lines if "pcpo-ray sample" in line]
    assert shlex.split(sample)[2] == home.url
    (load,) = [line.strip() for line in lines if "load_lora_weights" in line]
    loaded = []
    pipe = SimpleNamespace(load_lora_weights=lambda folder: loaded.append((folder / "state.json").is_file()))
    exec(load, {"pcpo_ray": pcpo_ray, "pipe": pipe})
    assert loaded == [True]


@pytest.mark.chaos
@pytest.mark.parametrize("stored", ["s3"], indirect=True)
def test_a_run_killed_between_two_checkpoints_goes_on_elsewhere_to_the_bit(small_sd, stored, tmp_path, machine):
    run = small.run(small_sd, steps=5, name="killed")
    path = tmp_path / "killed.yaml"
    path.write_text(dump(run))
    order = [sys.executable, "-m", "pcpo_ray.commands.app", "train", str(path), "--local", "--runs", stored]
    job = subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    home = run_at(stored, "killed")
    deadline = time.monotonic() + 120
    while "checkpoints/step-000002/state.json" not in Storage(home.url).names():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "the run made no checkpoint in 120 s"
        time.sleep(0.05)
    job.kill()
    job.wait(timeout=30)
    machine("machine-b")
    home = run_at(stored, "killed")
    recorder = go(run, home, found=True)
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 5), parameters(home.local, 5))
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == [1, 2, 3, 4, 5]
    shutil.rmtree(home.local)


def test_a_roll_back_sets_checkpoints_aside_that_no_machine_resumes(small_sd, stored, tmp_path, machine):
    home, _ = made(stored)
    for step in (1, 2, 3, 4):
        kept(home, step)
    home.prune(2, 4, 1)
    assert home.steps() == [1, 3, 4] and home.newest_until(2) == 1 and home.newest_until(0) is None
    home.set_aside_after(1)
    assert home.steps() == [1] and home.newest(print) == 1
    names = Storage(home.url).names("set-aside")
    assert {name.split("/")[1] for name in names} == {"step-000003", "step-000004"}
    assert {name.rpartition("/")[2] for name in names} >= {"state.json", "trainable.safetensors"}
    machine("machine-b")
    other = run_at(stored, "mine")
    other.take_over(print)
    assert other.newest(print) == 1 and not (other.local / "set-aside").exists()


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_who_reads_a_run_sends_nothing_that_was_taken_back_since(stored, machine):
    home, _ = made(stored)
    for step in (1, 2):
        kept(home, step)
    found = pcpo_ray.load_run(home.url)
    assert found.checkpoint is not None and found.checkpoint.name == "step-000002"
    home.set_aside_after(1)
    before = Storage(home.url).names()
    assert found.checkpoint is not None and found.checkpoint.name == "step-000001"
    assert Storage(home.url).names() == before


@pytest.mark.parametrize("cut", [[20], [17, 20]])
def test_uploads_that_were_cut_short_take_no_place_of_whole_ones(stored, machine, cut):
    """A machine was lost while it stored step 17, and another one while it stored 20; a third goes on from 10."""
    home, _ = made(stored)
    kept(home, 10)
    for step in cut:
        Storage(home.url).write(f"checkpoints/step-0000{step}/trainable.safetensors", b"cut")
    assert home.steps() == [10] and home.newest_until(18) == 10 and home.newest(lambda line: None) == 10
    kept(home, 13)
    home.prune(1, 13)
    assert home.steps() == [13] and home._newest_stored(lambda line: None) == 13
    kept(home, 15)
    home.set_aside_after(13)
    assert home.steps() == [13]


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_records_are_stored_before_a_checkpoint_that_waited_here(small_sd, stored, machine, monkeypatch):
    """The process was killed before it could store step 2; the next one is killed as it has stored the checkpoint."""
    run = small.run(small_sd, steps=9)
    home = run_at(stored, "mine")
    recorder = Recorder.create(home, run)
    recorder.record("train", 1, {"x": 1})
    kept(recorder.home, 1)
    recorder.record("train", 2, {"x": 2})
    saved(home.local, 2)

    def killed(*given):
        raise RunError("killed")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="killed"):
        patched.setattr(Recorder, "reopen", killed)
        opening.resume(run_at(stored, "mine"), run, lambda line: None)
    machine("machine-b")
    elsewhere, step = opening.resume(run_at(stored, "mine"), run, lambda line: None)
    assert step == 2 and [row["step"] for row in elsewhere.metrics()] == [1, 2]


def test_a_checkpoint_stored_already_is_not_replaced(stored, machine, monkeypatch):
    home, _ = made(stored)
    kept(home, 1)

    def fails(*given, **options):
        raise RunError("the upload failed")

    monkeypatch.setattr(Storage, "put", fails)
    home.push_checkpoint(1)
    assert home._newest_stored(pytest.fail) == 1
    (home.checkpoint(1) / "state.json").write_bytes(b"another")
    with pytest.raises(RunError, match="the upload failed"):
        home.push_checkpoint(1)


@pytest.mark.parametrize("stored", ["file"], indirect=True)
def test_a_resume_whose_alarm_still_holds_saves_nothing_again(small_sd, stored, machine, monkeypatch):
    settings = {"checkpoints__keep": 1, "checkpoints__every": 2}
    go(small.run(small_sd, steps=2, **settings), run_at(stored, "mine"))
    machine("machine-b")
    verdict = monitors.Verdict(alarms={"reward": "fell"}, healthy=0)
    monkeypatch.setattr(monitors, "judge", lambda run, rows: verdict)
    pushed = []
    monkeypatch.setattr(StoredFolder, "push_checkpoint", lambda home, step: pushed.append(step))
    go(small.run(small_sd, steps=4, monitors__action="stop", **settings), run_at(stored, "mine"), found=True)
    assert pushed == [] and run_at(stored, "mine")._newest_stored(pytest.fail) == 2
