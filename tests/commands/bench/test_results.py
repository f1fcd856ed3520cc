"""Results as files, and two of them compared."""

import dataclasses
import json

import pytest

from pcpo_ray import __version__
from pcpo_ray.commands.bench import page, results
from pcpo_ray.commands.bench.results import Bench, Results, compare
from pcpo_ray.commands.bench.rows import Goal, Row
from pcpo_ray.errors import BenchError
from tests.support import small


def row(name="learner", figures=(1.0, 2.0), **more):
    return Row(name=name, unit="pairs/s", figures=figures, limits=(2.0, 2.0), limit="bare", **more)


def found(*benches, source="a.yaml"):
    machine = {"cpu": "a chip", "cores": 2, "device": "CPU", "versions": ["Python 3.11"]}
    return Results(made="2026-01-01", source=source, machine=machine, benches=benches)


def bench(name="learner", config="c0", rows=None):
    return Bench(name=name, config=config, repeats=2, seconds=1.0, rows=rows or (row(),))


def test_a_file_gives_back_what_was_written_with_every_repeat(tmp_path):
    absent = Row(
        name="sampler, GPU", unit="images/s", goal=Goal(bound="at least", value=0.97), unmeasured="no GPU here"
    )
    told = row(goal=Goal(bound="at most", value=0.2, of="figure"), facts={"bare pairs/s": {"2": 1.5}, "best": 2})
    written = found(bench(), bench("sampler", rows=(told, absent)))
    path = tmp_path / "new" / "a.json"
    results.write(written, path)
    assert results.read(path) == written
    assert json.loads(path.read_text())["benches"][0]["rows"][0]["figures"] == [1.0, 2.0]
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "does not hold results"),
        ("{}", "made"),
        ('{"made": "", "source": "", "machine": {}, "benches": [{"name": "x"}]}', "benches.0"),
    ],
)
def test_a_file_of_something_else_is_named_with_what_is_wrong(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=words) as raised:
        results.read(path)
    assert str(path) in str(raised.value)


def test_this_machine_is_described_as_far_as_figures_depend_on_it():
    there = results.machine()
    assert there.keys() == {"cpu", "cores", "device", "versions"}
    assert there["cpu"] and there["cores"] >= 1
    assert f"pcpo_ray {__version__}" in there["versions"]
    assert any(line.startswith("torch ") for line in there["versions"])


def test_a_digest_is_of_everything_but_the_name(small_sd):
    run = small.run(small_sd)
    assert results.digest(run) == results.digest(dataclasses.replace(run, name="other"))
    assert results.digest(run) != results.digest(small.run(small_sd, sampling__steps=5))


def test_two_files_are_compared_row_by_row_by_their_median_ratios():
    first = found(bench(rows=(row(figures=(1.0, 2.0)),)), bench("loop"))
    second = found(bench(rows=(row(figures=(1.2, 2.4)),)), bench("start"))
    (pair,) = compare(first, second)
    assert pair.first.ratios == (0.5, 1.0) and pair.second.ratios == (0.6, 1.2)
    assert pair.change == pytest.approx(1.2)


def test_rows_without_a_limit_compare_by_figures_absent_rows_do_not():
    def peak(value):
        return Row(name="peak memory", unit="MiB", figures=(value,))

    absent = Row(name="sampler, GPU", unit="images/s", unmeasured="no GPU here")
    first, second = (found(bench("backends", rows=(peak(value), absent))) for value in (100.0, 150.0))
    assert [pair.change for pair in compare(first, second)] == [1.5, None]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (found(bench("loop")), r"no benchmark in common: \['learner'\] and \['loop'\]"),
        (found(bench(config="c1"), source="b.yaml"), r"two configs, digests c0 \(a.yaml\) and c1 \(b.yaml\)"),
        (found(bench(rows=(row("rank 0"),))), r"rows in one file only: \['learner', 'rank 0'\]"),
        (
            found(bench(rows=(dataclasses.replace(row(), unit="images/s"),))),
            "pairs/s against 'bare', the other images/s",
        ),
        (found(bench(rows=(dataclasses.replace(row(), limit="padded"),))), "against 'bare', the other .* 'padded'"),
    ],
)
def test_files_that_measured_different_things_are_not_compared(other, words):
    with pytest.raises(BenchError, match=words):
        compare(found(bench()), other)


def test_tables_show_what_was_reached_missed_and_not_measured():
    console = page.wide()
    reached = row(goal=Goal(bound="at most", value=2.0))
    missed = row("slow learner", goal=Goal(bound="at least", value=0.95))
    absent = Row(name="learner, GPU", unit="pairs/s", goal=Goal(bound="at least", value=0.97), unmeasured="no GPU here")
    one = found(bench(rows=(reached, missed, absent)))
    with console.capture() as said:
        page.head(one, console)
        page.show(one.benches[0], console)
        page.compare(compare(one, one), one, one, console)
    text = said.get()
    shown = text.partition("first: ")[0].splitlines()
    for name, words in [("learner ", "0.750"), ("learner ", "reached"), ("slow learner", "MISSED")]:
        assert any(line.strip().startswith(name) and words in line for line in shown)
    assert any("learner, GPU" in line and "unmeasured" in line for line in shown) and "no GPU here" in text
    assert "limit: bare" in text and "a GPU's are unmeasured" in text
    assert "0.750 (0.500..1.000)" in text and "1.000" in text


def test_a_row_whose_goal_is_of_its_figure_is_compared_by_it():
    def adapter(value):
        goal = Goal(bound="at most", value=0.2, of="figure")
        return Row(name="weights", unit="s", figures=(value,), limits=(value / 7,), limit="a copy", goal=goal)

    first, second = (found(bench(rows=(adapter(value),))) for value in (0.08, 0.12))
    assert [pair.change for pair in compare(first, second)] == [pytest.approx(1.5)]


def test_nothing_is_compared_with_a_figure_of_0_by_its_ratio():
    first, second = (found(bench(rows=(row(figures=(value, value)),))) for value in (0.0, 1.0))
    assert [pair.change for pair in compare(first, second)] == [None]
