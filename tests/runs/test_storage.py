"""Files at a URL: what is written is read, and what cannot be is said in time."""

import os
import shutil
import socket
import time

import pytest

from pcpo_ray.errors import AwayError, RunError
from pcpo_ray.runs import storage
from pcpo_ray.runs.storage import Storage
from pcpo_ray.runs.urls import child, shown
from tests.support import s3
from tests.support.part import MORE

LIMIT = 120.0
"""Seconds in which an error must be there."""


def test_a_stored_file_is_listed_read_to_the_byte_and_deleted(stored, tmp_path):
    place = Storage(child(stored, "a run"))
    large = tmp_path / "large"
    large.write_bytes(os.urandom(13 * 2**20))  # S3 takes it in parts
    small = tmp_path / "small"
    small.write_bytes(b"one\n")
    place.put({"folder/within/large": large, "small": small})
    place.write("tiny", b"two")
    assert place.names() == ["folder/within/large", "small", "tiny"]
    assert place.names("folder") == ["folder/within/large"]
    assert Storage(stored).folders() == ["a run"]
    assert (place.read("tiny"), place.read("small")) == (b"two", b"one\n")
    small.write_bytes(b"three")
    place.put({"small": small})
    place.get({"folder/within/large": tmp_path / "new" / "large", "small": tmp_path / "new" / "small"})
    assert (tmp_path / "new" / "large").read_bytes() == large.read_bytes()
    assert (tmp_path / "new" / "small").read_bytes() == b"three"
    place.delete(["small", "small"])
    assert place.names() == ["folder/within/large", "tiny"]
    place.delete_folder("folder")
    assert place.names() == ["tiny"]


def test_where_nothing_is_nothing_is_found_and_nothing_need_be_deleted(stored):
    place = Storage(child(stored, "absent"))
    assert (place.names(), place.folders(), place.read("x")) == ([], [], None)
    place.delete(["x"])
    place.delete_folder("x")
    assert place.names() == []


@pytest.mark.parametrize("size", [5, 13 * 2**20])
def test_an_upload_whose_source_fails_leaves_the_good_one(stored, tmp_path, monkeypatch, size):
    monkeypatch.setattr(storage, "WHOLE", 10)
    path = tmp_path / "file"
    path.write_bytes(b"g" * size)
    place = Storage(child(stored, "run"))
    place.put({"file": path})
    monkeypatch.setattr(storage, "WHOLE", 0)
    place.put({"file": path})
    assert place.names() == ["file"]

    def half(source, target, length):
        target.write(source.read()[: size // 2])
        raise OSError("the disk broke")

    monkeypatch.setattr(shutil, "copyfileobj", half)
    path.write_bytes(b"x" * size)
    with pytest.raises(RunError, match=r"run .*cannot be written: the disk broke"):
        place.put({"file": path, "new": path})
    assert place.names() == ["file"] and place.read("file") == b"g" * size


def test_a_small_file_that_cannot_be_read_sends_nothing(stored, tmp_path):
    place = Storage(child(stored, "run"))
    place.write("file", b"good")
    with pytest.raises(RunError, match=r"run .*cannot be written: .*No such file"):
        place.put({"file": tmp_path / "gone"})
    assert place.read("file") == b"good"


KEYS = ("../evil", "x/../../evil", "./c", "a\\b", "/abs", "ok//e")


def test_keys_that_lead_out_of_the_folder_are_never_fetched(s3_server, tmp_path):
    import boto3

    url = s3.bucket(s3_server)
    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    for key in ("ok/d", *KEYS):
        client.put_object(Bucket=url.removeprefix("s3://"), Key=f"run/{key}", Body=b"1")
    place = Storage(f"{url}/run{s3.options(s3_server)}")
    assert place.names() == ["ok/d"]
    for key in KEYS:
        with pytest.raises(RunError, match=r"has the name .*, which no file below a folder has; delete it there"):
            place.get({key: tmp_path / "run" / key})
    assert list(tmp_path.iterdir()) == []


def test_what_passes_by_itself_is_told_from_what_does_not(s3_server):
    away = Storage(f"s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:{s3.free_port()}")
    with pytest.raises(AwayError):
        away.names()
    for text in ("AWS Error SLOW_DOWN during PutObject", "AWS Error UNKNOWN (HTTP status 503)"):
        assert isinstance(away._error(OSError(text), "written"), AwayError)
    assert not isinstance(away._error(OSError("AWS Error ACCESS_DENIED"), "written"), AwayError)


def silent(keep):
    """An address that takes connections and never answers."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(50)
    keep.append(server)
    return f"127.0.0.1:{server.getsockname()[1]}"


def mute(keep):
    """An address that does not even take connections: its queue is full."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    keep.append(server)
    for _ in range(3):
        waiting = socket.socket()
        waiting.setblocking(False)
        waiting.connect_ex(server.getsockname())
        keep.append(waiting)
    return f"127.0.0.1:{server.getsockname()[1]}"


def refused(keep):
    return f"127.0.0.1:{s3.free_port()}"


@pytest.mark.parametrize(
    ("scheme", "address"),
    [
        ("s3://bucket", refused),
        pytest.param("s3://bucket", silent, marks=pytest.mark.chaos),
        pytest.param("s3://bucket", mute, marks=(pytest.mark.chaos, MORE)),
        pytest.param("gs://anonymous@bucket", refused, marks=pytest.mark.chaos),
        *(pytest.param("gs://anonymous@bucket", one, marks=(pytest.mark.chaos, MORE)) for one in (silent, mute)),
    ],
)
def test_storage_that_does_not_answer_is_said_in_time(scheme, address):
    keep = []
    where = address(keep)
    started = time.monotonic()
    with pytest.raises(RunError) as raised:
        Storage(f"{scheme}/runs/mine?scheme=http&endpoint_override={where}").names()
    assert time.monotonic() - started < LIMIT
    said = str(raised.value)
    assert said.startswith(f"{scheme}/runs/mine (endpoint {where}) cannot be listed: ")
    assert "see that it can be reached from this machine" in said
    for one in keep:
        one.close()


def test_a_bucket_that_is_not_there_is_said(s3_server):
    place = Storage(f"s3://no-such-bucket/runs/mine{s3.options(s3_server)}")
    for attempt in (place.names, lambda: place.write("x", b"")):
        with pytest.raises(RunError, match=r"s3://no-such-bucket/runs/mine .*NO_SUCH_BUCKET.*; make the bucket"):
            attempt()


def test_keys_that_are_refused_are_said_without_being_shown(s3_server):
    url = s3.bucket(s3_server) + "/runs" + s3.options(s3_server)
    with s3.guarded(s3_server):
        for attempt in (Storage(url).names, lambda: Storage(url).read("x"), lambda: Storage(url).write("x", b"")):
            started = time.monotonic()
            with pytest.raises(RunError, match=r"give this process credentials .*AWS_ACCESS_KEY_ID") as raised:
                attempt()
            assert time.monotonic() - started < LIMIT
            assert "hidden" not in str(raised.value)
    Storage(url).write("x", b"")
    assert Storage(url).names() == ["x"]


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAHIDDEN@bucket/runs",
        "s3://AKIA:HIDDEN@bucket/runs",
        "s3://bucket/runs?access_key=AKIA&secret_key=HIDDEN",
        "abfs://:HIDDEN@account/runs",
        "gs://bucket/runs?access_token=HIDDEN",
    ],
)
def test_a_url_with_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(RunError, match="holds credentials, which would end up in logs") as raised:
        Storage(url)
    assert "HIDDEN" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/runs", "ftp://host/runs cannot be listed: Unrecognized filesystem type"),
        ("s3://", "got the URL 's3://'; expected one such as s3://bucket/runs"),
        ("s3://bucket/runs?endpoint=x", r"has the options \['endpoint'\]; expected of \['region', .*endpoint_override"),
    ],
)
def test_a_url_that_is_none_is_said(url, said):
    with pytest.raises(RunError, match=said):
        Storage(url).names()


def test_azure_without_credentials_is_said():
    with pytest.raises(
        RunError, match=r"^abfs://.*/runs cannot be listed: .*Credential.*; give this process credentials"
    ):
        Storage("abfs://box@nowhere.dfs.core.windows.net/runs").names()


def test_options_stay_at_the_end_of_a_url_and_are_not_shown():
    assert child("s3://b/runs/?region=x", "my run") == "s3://b/runs/my%20run?region=x"
    assert child("file:///runs", "mine") == "file:///runs/mine"
    assert shown("s3://b/runs?endpoint_override=h:1") == "s3://b/runs"


def test_the_endpoint_may_come_from_the_environment(s3_server, monkeypatch):
    url = s3.bucket(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_server}")
    place = Storage(f"{url}/runs")
    place.write("x", b"1")
    assert Storage(f"{url}/runs{s3.options(s3_server)}").read("x") == b"1"
