"""Records on their way into storage: nothing is sent again and again, and what counts is always whole."""

import json

import pytest

from pcpo_ray.errors import RunError
from pcpo_ray.runs import outbox
from pcpo_ray.runs.storage import Storage
from pcpo_ray.runs.urls import child


@pytest.fixture
def place(tmp_path):
    return Storage(child(f"file://{tmp_path}/storage", "run"))


@pytest.fixture
def local(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def sent(monkeypatch):
    """The bytes of everything that is sent, by name."""
    found = []
    write, put = Storage.write, Storage.put

    def writing(storage, name, content):
        found.append((name, len(content)))
        write(storage, name, content)

    def putting(storage, files, **options):
        found.extend((name, path.stat().st_size) for name, path in files.items())
        put(storage, files, **options)

    monkeypatch.setattr(Storage, "write", writing)
    monkeypatch.setattr(Storage, "put", putting)
    return found


def add(local, name, text):
    (local / name).parent.mkdir(exist_ok=True)
    with (local / name).open("a") as file:
        file.write(text)


def fetched(place, tmp_path, name="fetched"):
    outbox.fetch(place, tmp_path / name)
    return {
        path.relative_to(tmp_path / name).as_posix(): path.read_bytes()
        for path in (tmp_path / name).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_bytes_sent_grow_linearly_with_the_length_of_a_run(place, local, sent, tmp_path):
    steps, line, checked = 300, 16_000, []
    for step in range(1, steps + 1):
        add(local, "metrics.jsonl", "m" * (line - 1) + "\n")
        add(local, f"scores.parquet/step-{step:06d}.parquet", "s" * 1000)
        outbox.push(local, place)
        if step in (steps // 4, steps // 2, steps):
            checked.append(sum(size for _, size in sent) / (step * (line + 1000)))
    assert max(checked) < 4, checked  # with whole files each time: step / 2
    assert len([name for name, _ in sent if name.startswith("scores.parquet")]) == steps
    assert len(place.names("metrics.jsonl")) <= 3 * outbox.FEW
    assert (local / outbox.MARK).stat().st_size < 10_000
    assert fetched(place, tmp_path)["metrics.jsonl"] == (local / "metrics.jsonl").read_bytes()


def test_what_is_fetched_is_what_was_recorded_and_goes_on_from_there(place, local, sent, tmp_path):
    add(local, "config.yaml", "seed: 1")
    for step in (1, 2):
        add(local, "events.jsonl", f"{step}\n")
        add(local, f"features/step-{step:06d}.npy", "f")
        add(local, f"logs/events.out.tfevents.{1}", "t" * step)
        outbox.push(local, place)
    (local / "images" / "step-000002").mkdir(parents=True)
    add(local, "images/step-000002/000-00.png", "p")
    outbox.push(local, place)
    found = fetched(place, tmp_path)
    assert found == {path.relative_to(local).as_posix(): path.read_bytes() for path in visible(local)}
    sent.clear()
    outbox.push(tmp_path / "fetched", place)
    assert [name for name, _ in sent] == [outbox.RECORDS]


def visible(local):
    return [path for path in local.rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_what_is_rewound_is_forgotten_and_recorded_again(place, local, tmp_path):
    for step in (1, 2, 3):
        add(local, "metrics.jsonl", f"{step}\n")
        add(local, f"scores.parquet/step-{step:06d}.parquet", f"first {step}")
        outbox.push(local, place)
    outbox.rewound(local, 1)
    for step in (2, 3):
        (local / f"scores.parquet/step-{step:06d}.parquet").unlink()
    (local / "metrics.jsonl").write_text("1\n")
    add(local, "metrics.jsonl", "again 2\n")
    add(local, "scores.parquet/step-000002.parquet", "again 2")
    outbox.push(local, place)
    assert fetched(place, tmp_path) == {
        "metrics.jsonl": b"1\nagain 2\n",
        "scores.parquet/step-000001.parquet": b"first 1",
        "scores.parquet/step-000002.parquet": b"again 2",
    }


@pytest.mark.parametrize("fails", ["write", "put", "delete"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_push_that_is_cut_short_leaves_what_counted_or_what_counts_now(
    place, local, tmp_path, monkeypatch, fails, after
):
    for step in range(1, outbox.FEW):
        add(local, "metrics.jsonl", f"{step}\n")
        outbox.push(local, place)
    before = (local / "metrics.jsonl").read_bytes()
    add(local, "metrics.jsonl", "last\n")  # makes one part of all
    add(local, "scores.parquet/step-000001.parquet", "s")
    method, count = getattr(Storage, fails), []

    def failing(storage, *arguments, **options):
        count.append(1)
        if len(count) > after:
            raise RunError("away")
        method(storage, *arguments, **options)

    monkeypatch.setattr(Storage, fails, failing)
    if (fails, after) in (("put", 1), ("delete", 1)):
        outbox.push(local, place)
    else:
        with pytest.raises(RunError, match="away"):
            outbox.push(local, place)
    monkeypatch.undo()
    assert fetched(place, tmp_path, "then")["metrics.jsonl"] in (before, before + b"last\n")
    add(local, "metrics.jsonl", "more\n")
    outbox.push(local, place)
    place.write("metrics.jsonl/notes", b"mine")
    outbox.clear(local, place)
    assert fetched(place, tmp_path)["metrics.jsonl"] == before + b"last\nmore\n"
    assert len(place.names("metrics.jsonl")) <= 3 and place.read("metrics.jsonl/notes") == b"mine"


def test_what_only_looks_like_a_record_is_neither_sent_deleted_nor_fetched(place, local, tmp_path):
    for step in (1, 2):
        add(local, f"scores.parquet/step-{step:06d}.parquet", "s")
    for name in ("scores.parquet/step-000002-best.parquet", "features/step-1.npy", "scores.parquet/step-000009.bak"):
        add(local, name, "mine")
    outbox.push(local, place)
    place.write("scores.parquet/step-000001-best.parquet", b"mine")
    place.write("notes.txt", b"mine")
    place.write("metrics.jsonl/notes.txt", b"mine")
    outbox.rewound(local, 1)
    (local / "scores.parquet" / "step-000002.parquet").unlink()
    outbox.push(local, place)
    assert [name for name in place.names() if name != outbox.RECORDS] == [
        "metrics.jsonl/notes.txt",
        "notes.txt",
        "scores.parquet/step-000001-best.parquet",
        "scores.parquet/step-000001.parquet",
    ]
    assert fetched(place, tmp_path) == {"scores.parquet/step-000001.parquet": b"s"}


@pytest.mark.parametrize("name", ["../evil", "/evil", "a//b", "a\\b"])
@pytest.mark.parametrize("kind", ["parts", "others"])
def test_names_that_lead_out_of_the_run_are_refused(place, tmp_path, name, kind):
    listed = {"parts": {name: [[0, 1, "x"]]} if kind == "parts" else {}, "others": [name] if kind == "others" else []}
    place.write(outbox.RECORDS, json.dumps(listed).encode())
    with pytest.raises(RunError, match=r"\.records\.json names .* lead out of the run"):
        outbox.fetch(place, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"parts": {"x": 3}, "others": []}'])
def test_a_list_of_records_that_is_damaged_is_named(place, tmp_path, text):
    place.write(outbox.RECORDS, text)
    with pytest.raises(RunError, match=r"\.records\.json is not what a run leaves there"):
        outbox.fetch(place, tmp_path / "fetched")


def test_a_part_that_was_changed_is_named(place, local, tmp_path):
    add(local, "metrics.jsonl", "1\n")
    outbox.push(local, place)
    (name,) = place.names("metrics.jsonl")
    place.write(name, b"2\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl/0+-0+2-\w+ is cut short or changed; restore it"):
        fetched(place, tmp_path)
