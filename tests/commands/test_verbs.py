"""A verb that does not exist is told which was meant, and --help shows no type of a flag."""

import re
import subprocess
import sys

import pytest
import typer

from pcpo_ray import __version__
from pcpo_ray.commands import app, verbs

COMMANDS = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]


def test_every_word_means_a_verb_that_exists_and_is_none_itself():
    assert set(verbs.MEANT) <= set(COMMANDS) and not set(verbs.VERB_OF) & set(COMMANDS)
    assert len(verbs.VERB_OF) == sum(map(len, verbs.MEANT.values()))  # each word has one meaning


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (("run", "shapes_pcpo", "steps=3"), "did you mean pcpo-ray train shapes_pcpo steps=3?"),
        (("ls",), "did you mean pcpo-ray list?"),
        (("shapes_pcpo", "--local"), "the verb comes first: pcpo-ray train shapes_pcpo --local"),
        (("mine.yaml",), "the verb comes first: pcpo-ray train mine.yaml"),
        (("studies/aa",), "the verb comes first: pcpo-ray study studies/aa"),
        (("resume", "mine"), "give the command that started it, and --resume"),
        (("rm", "runs/mine"), "delete that: rm -r runs/mine"),
        (("tain", "x"), "Did you mean 'train'?"),
        (("frobnicate",), "pcpo-ray --help lists them"),
    ],
)
def test_an_unknown_verb_names_its_cure(command, words, cure):
    status, _, errors = command(*words)
    assert status == 2 and "No such command" in errors
    assert cure in " ".join(re.sub("[│╭╮╰╯─]", " ", errors).split())


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (("report",), "Missing argument 'RUN'. pcpo-ray list shows which there are"),
        (("evaluate",), "pcpo-ray list shows which there are"),
        (("train",), "Missing argument 'CONFIG'. a file, or a recipe's name such as shapes_pcpo"),
        (("init",), "Missing argument 'NAME'. pcpo-ray recipes lists them"),
        (("study",), "such as studies/diffusion"),
    ],
)
def test_an_argument_that_was_left_out_is_told_where_to_find_one(command, words, cure):
    status, _, errors = command(*words)
    assert status == 2 and cure in " ".join(re.sub("[│╭╮╰╯─]", " ", errors).split())


def test_a_paragraph_of_help_is_as_wide_as_the_terminal(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, said, _ = command("plan", "--help")
    assert status == 0 and "step of each layout. The model's folder" in said
    assert "[OPTIONS] {CONFIG} [OVERRIDES]..." in said


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "pcpo_ray", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"pcpo-ray {__version__}\n")


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), ("bench", "loop")])
def test_help_shows_no_type_of_a_flag_and_an_example(command, words):
    status, said, _ = command(*words, "--help")
    assert status == 0 and "<bool>" not in said and "range>" not in said and "-h " in said
