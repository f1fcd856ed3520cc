"""docs/config.md and the schema are up to date, and `pcpo-ray config` reads at 80 columns."""

import copy
import json
import re

import jsonschema
import pytest
import yaml
from rich.console import Console

from pcpo_ray.commands.reference import page, schema, terminal
from pcpo_ray.config import files
from pcpo_ray.config.keys import Key, every_key
from tests.support import ROOT

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "studies" not in path.parts)
VALID = jsonschema.Draft202012Validator(schema.schema())


@pytest.mark.parametrize("name", page.files())
def test_the_page_and_the_schema_are_those_of_the_code(name):
    made = (ROOT / name).read_text(encoding="utf-8")
    assert made == page.files()[name], "run python -m pcpo_ray.commands.reference"


def test_the_page_lists_every_key_once_with_its_sentence():
    text = page.page()
    for key in (one for one in every_key() if isinstance(one, Key)):
        rows = [line for line in text.splitlines() if line.startswith(f"| `{key.path}`")]
        assert any(key.sentence.replace("|", "\\|") in row for row in rows), key.path
    assert all(line.count(" | ") == 3 for line in text.splitlines() if line.startswith("| `"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_by_the_schema(path):
    VALID.validate(files.read(path))
    VALID.validate(json.loads(json.dumps(files.plain(files.load(path)))))


OTHERS: dict[str, list] = {
    "credit": ["interpolate", "mine:Own", {"kind": "mine:Own", "options": {"a": 1}}],
    "prompts": ["prompts.txt", {"kind": "file", "path": "p.csv", "column": "text"}],
    "rewards": ["grain", {"kind": "grain"}, [{"kind": "mine:Own", "weight": 2}]],
    "optimizer": [{"kind": "adamw8bit"}, {"kind": "torch.optim:RAdam"}, {"schedule": "cosine", "warmup": 3}],
}
WRONG: dict[str, list] = {
    "credit": [{"kind": "nativ"}, {"kind": "native", "slope": 1}],
    "steps": ["several", 0],
    "optimizer": [{"lr": 1e-3}, {"kind": "adam"}, {"schedule": "cosin"}],
    "rewards": [[{"kind": "grain", "wieght": 1}]],
}


def test_what_is_accepted_and_refused_is_so_by_the_schema_too():
    plain = files.read(ROOT / "configs" / "shapes_pcpo.yaml")
    for key, value in [(key, value) for key, values in OTHERS.items() for value in values]:
        assert VALID.is_valid({**plain, key: value}), (key, value)
    for key, value in [(key, value) for key, values in WRONG.items() for value in values]:
        assert not VALID.is_valid({**copy.deepcopy(plain), key: value}), (key, value)


def test_every_key_is_described_in_the_schema():
    definitions = schema.schema()
    described = [definitions, *definitions["$defs"].values()]
    for one in described:
        lacking = [key for key, about in one["properties"].items() if not about.get("description") and key != "kind"]
        assert lacking == [], one.get("title")


def test_a_key_and_all_below_it_are_shown_a_line_each_where_piped(command):
    status, out, _ = command("config", "sampling.process")
    assert status == 0 and "sampling.process.eta: number > 0, default 0.3, of kind constant_noise" in out
    assert all(line.startswith("sampling.process") for line in out.splitlines())
    status, out, _ = command("config", "rewards.0.weight")
    assert out.startswith("rewards.N.weight: number, default 1.")
    status, out, _ = command("config")
    assert [line.partition(":")[0] for line in out.splitlines()][:3] == ["name", "seed", "steps"]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("credit.kind", "credit.kind=native: "),
        ("rewards.kind", "rewards.N.kind=clip_score: "),
        ("evaluation.rewards.0.kind", "rewards.N.kind=clip_score: "),
        ("sampling.process.kind", "sampling.process.kind=ddim: "),
    ],
)
def test_the_kinds_of_a_mapping_are_shown_alone(command, asked, line):
    status, out, _ = command("config", asked)
    assert status == 0 and any(one.startswith(line) for one in out.splitlines())
    assert all(".kind=" in one for one in out.splitlines())


@pytest.mark.parametrize(
    ("asked", "guess"),
    [
        ("optimzer", "optimizer"),
        ("learning_rate", "optimizer.learning_rate"),
        ("opt", "optimizer"),
        ("stpes", "steps or sampling.steps or evaluation.sampling.steps"),
        ("zzz", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(command, asked, guess):
    status, _, errors = command("config", asked)
    assert status == 1 and f"no key '{asked}' in a config" in errors
    assert (f"(did you mean {guess}?)" in errors) == bool(guess)


@pytest.mark.parametrize("asked", [None, "optimizer", "evaluation", "rewards"])
def test_the_terminal_has_80_columns(asked):
    console = Console(force_terminal=True, width=80, record=True, no_color=True, file=open("/dev/null", "w"))  # noqa: SIM115
    terminal.show(asked, console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert all(len(line.split()) > 2 or not line[40:].strip() for line in shown.splitlines() if line[:1].isalpha())


def test_the_schema_is_printed_for_editors(command):
    status, out, _ = command("config", "--schema")
    assert status == 0 and json.loads(out) == schema.schema()
    assert re.search(r"# yaml-language-server: \$schema=config\.schema\.json", page.page())
    assert yaml.safe_load(f"{schema.LINE}config.schema.json\nname: a") == {"name": "a"}
