"""Of two writers of a stored run one goes on, and the other overwrites nothing of it; a store that cannot is named."""

import json
import logging

import pytest

from pcpo_ray.errors import AwayError, RunError, TakenOverError
from pcpo_ray.runs.conditional import Seen
from pcpo_ray.runs.outbox import RECORDS
from pcpo_ray.runs.storage import Storage
from pcpo_ray.runs.stored import StoredFolder
from pcpo_ray.runs.urls import child
from pcpo_ray.runs.writer import WRITER, Token
from pcpo_ray.training.recorder import Recorder
from tests.support import s3, small
from tests.support.running import saved


@pytest.fixture
def place(s3_server):
    return f"{s3.bucket(s3_server)}/some/runs{s3.options(s3_server)}"


@pytest.fixture
def on(monkeypatch, tmp_path):
    """The folder of the run at a URL, as another machine has it, with a cache of its own."""

    def machine(name, place):
        monkeypatch.setenv("PCPO_RAY_CACHE", str(tmp_path / name))
        return StoredFolder.at(child(place, "mine"))

    return machine


@pytest.fixture
def before(monkeypatch):
    """Have something done just before a file is written conditionally, once: after the look, before the writing."""

    def stop(name, meanwhile):
        replace, waiting = Storage.replace, [meanwhile]

        def stopped(storage, written, content, seen, **options):
            if written == name and waiting:
                waiting.pop()()
            return replace(storage, written, content, seen, **options)

        monkeypatch.setattr(Storage, "replace", stopped)

    return stop


def made(home):
    return Recorder.create(home, small.run("nowhere"))


def writer_of(home):
    return Token.of(Storage(home.url).read(WRITER)).id


def taken_over(home):
    home = home.take_over(lambda line: None).claim()
    home.catch_up()
    return home


def written(home, name):
    """What is sent of a file that grows."""
    storage = Storage(home.url)
    parts = json.loads(storage.read(RECORDS))["parts"].get(name, [])
    return b"".join(storage.read(f"{name}/{start:015d}-{end:015d}-{summed}") or b"" for start, end, summed in parts)


def test_who_starts_a_run_as_another_does_is_refused_at_once(on, place, before):
    first, second = on("machine-a", place), on("machine-b", place)
    first, second = first.claim_new(pytest.fail), second.claim_new(pytest.fail)
    for home in (first, second):
        home.local.mkdir(parents=True)
    going_on = []
    before(WRITER, lambda: going_on.append(second.claim(new=True)))
    with pytest.raises(RunError, match=r"mine has just been started or resumed by process \d+ on .*; stop that"):
        first.claim(new=True)
    assert writer_of(second) == going_on[0].writer
    going_on[0].push_records()


def test_a_start_between_two_looks_of_another_is_not_undone(on, place, before):
    first, second = on("machine-a", place), on("machine-b", place)
    started = []
    before(WRITER, lambda: started.append(made(second.claim_new(pytest.fail))))
    with pytest.raises(RunError, match="has just been started or resumed by process"):
        first.claim_new(pytest.fail)
    assert writer_of(second) == started[0].home.writer


def test_a_start_cut_short_after_its_claim_can_be_made_again(on, place):
    first, second = on("machine-a", place), on("machine-b", place)
    first = first.claim_new(pytest.fail)
    first.local.mkdir(parents=True)
    cut_short = first.claim(new=True)
    again = made(second.claim_new(pytest.fail))
    assert writer_of(second) == again.home.writer
    with pytest.raises(TakenOverError, match="has taken over"):
        cut_short.push_records()


def test_of_two_who_resume_at_once_the_later_claim_is_refused(on, place):
    made(on("machine-a", place))
    second, third = on("machine-b", place), on("machine-c", place)
    late, soon = second.take_over(lambda line: None), third.take_over(lambda line: None)
    soon = soon.claim()
    with pytest.raises(RunError, match="has just been started or resumed by process"):
        late.claim()
    soon.push_records()
    assert writer_of(soon) == soon.writer == json.loads(Storage(soon.url).read(RECORDS))["writer"]


def test_a_push_under_way_when_a_run_is_taken_over_does_not_count(on, place, before):
    stale = made(on("machine-a", place))
    new = []

    def meanwhile():
        new.append(taken_over(on("machine-b", place)))
        Recorder(new[0], stale.run).event("fault", message="of the new one")
        new[0].push_records()

    stale.event("fault", message="too late")
    before(RECORDS, meanwhile)
    with pytest.raises(TakenOverError, match=r"has taken over the run .*mine"):
        stale.home.push_records()
    assert b"of the new one" in written(new[0], "events.jsonl")
    assert b"too late" not in written(new[0], "events.jsonl")
    assert json.loads(Storage(new[0].url).read(RECORDS))["writer"] == new[0].writer


def test_a_takeover_fences_off_a_push_before_it_sends_anything(on, place, before):
    stale, new = made(on("machine-a", place)), []
    stale.event("fault", message="too late")
    before(RECORDS, lambda: new.append(taken_over(on("machine-b", place))))
    with pytest.raises(TakenOverError):
        stale.home.push_records()
    assert b"too late" not in written(new[0], "events.jsonl")


def test_a_checkpoint_under_way_takes_not_the_place_of_the_new_writers(on, place, before):
    stale, new = made(on("machine-a", place)), []
    saved(stale.home.local, 3)
    state = stale.home.checkpoint(3) / "state.json"
    state.write_text(state.read_text().replace('"version": 3', '"version": 9'))

    def meanwhile():
        new.append(taken_over(on("machine-b", place)))
        saved(new[0].local, 3)
        new[0].push_checkpoint(3)

    before("checkpoints/step-000003/state.json", meanwhile)
    with pytest.raises(TakenOverError):
        stale.home.push_checkpoint(3)
    stored = Storage(new[0].url).read("checkpoints/step-000003/state.json")
    assert stored == (new[0].checkpoint(3) / "state.json").read_bytes() != state.read_bytes()


@pytest.mark.parametrize("refused", [True, False])
def test_a_store_without_conditional_writes_is_named_once(s3_server, on, refused, caplog):
    with s3.unconditional(s3_server, refused=refused) as address, caplog.at_level(logging.WARNING, "pcpo_ray"):
        bucket = s3.bucket(s3_server)
        place = f"{bucket}/runs{s3.options(address)}"
        first, second = on("machine-a", place), on("machine-b", place)
        started = made(first.claim_new(pytest.fail))
        assert not Storage(first.url).conditional
        with pytest.raises(RunError, match="exists; continue it with --resume"):
            second.claim_new(pytest.fail)
        late, soon = second.take_over(print), on("machine-c", place).take_over(print).claim()
        soon.catch_up()
        with pytest.raises(RunError, match="has just been started or resumed by process"):
            late.claim()
        with pytest.raises(TakenOverError):
            started.home.push_records()
        soon.push_records()
    said = [record.getMessage() for record in caplog.records if "conditional" in record.getMessage()]
    why = "501 Not Implemented" if refused else "it does not heed If-None-Match and If-Match"
    assert len(said) == 1 and f"{bucket} has no conditional writes here" in said[0] and why in said[0]
    assert "Two looks stand in" in said[0]


def test_a_disk_has_no_conditional_writes_and_writes_all_the_same(tmp_path):
    storage = Storage(f"file://{tmp_path}/runs")
    assert not storage.conditional and storage.seen("x") == Seen()
    assert storage.replace("x", b"1", Seen()) and storage.seen("x") == Seen(b"1")


@pytest.mark.parametrize("name", ["a b", "100%", "a#b", "x~[y]+&=ü", "%41"])
def test_both_libraries_mean_the_same_file(place, name, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{s3.free_port()}")  # the URL's own counts
    storage = Storage(child(place, name))
    assert storage.replace(name, b"1", storage.seen(name), prove=True) and storage.read(name) == b"1"
    storage.write(name, b"2")
    seen = storage.seen(name)
    assert seen.content == b"2" and storage.replace(name, b"3", seen) and storage.read(name) == b"3"
    assert not storage.replace(name, b"4", seen) and storage.read(name) == b"3"
    assert storage.replace(name, b"3", seen)  # as if the answer to the first had been lost
    assert storage.conditional


PROFILES = {
    "keys": ("[default]\naws_access_key_id = testing\naws_secret_access_key = hidden\n", ""),
    "process": ("", "[default]\ncredential_process = echo '{}'\n"),
}


@pytest.mark.parametrize("kind", PROFILES)
def test_keys_of_a_profile_are_found_and_what_is_not_is_named(place, kind, monkeypatch, tmp_path, caplog):
    keys = {"Version": 1, "AccessKeyId": "testing", "SecretAccessKey": "hidden"}
    for name, text in zip(("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"), PROFILES[kind], strict=True):
        (tmp_path / name).write_text(text.replace("{}", json.dumps(keys)))
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage = Storage(place)
    assert storage.replace("x", b"1", storage.seen("x"), prove=True) and storage.read("x") == b"1"
    assert storage.conditional == (kind == "keys")
    if kind == "process":
        assert "obstore finds no credentials in the environment or the profile" in caplog.text


def test_a_bucket_or_a_server_that_is_not_there_is_said(s3_server):
    absent = Storage(f"s3://no-such-bucket/runs{s3.options(s3_server)}")
    for ask in (lambda: absent.seen("x"), lambda: absent.replace("x", b"", Seen())):
        with pytest.raises(RunError, match=r"s3://no-such-bucket/runs .*; make the bucket"):
            ask()
    away = Storage(f"s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:{s3.free_port()}")
    with pytest.raises(AwayError, match="see that it can be reached"):
        away.seen("x")
    assert away.conditional


def test_keys_that_are_refused_for_a_while_do_not_end_conditional_writes(s3_server, place):
    storage = Storage(place)
    for _ in range(2):  # before and after the first conditional write
        with s3.guarded(s3_server), pytest.raises(RunError, match="give this process credentials") as raised:
            storage.seen("x")
        assert "hidden" not in str(raised.value)
        assert storage.replace("x", b"1", storage.seen("x"), prove=True) and storage.conditional
        storage.delete(["x"])
