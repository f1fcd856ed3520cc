"""An option that a command does not have is told as an option: which was meant, or which key of the config."""

import re

import pytest


def said(errors):
    return " ".join(re.sub("[│╭╮╰╯─]", " ", errors).split())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--steps", "5"], "give steps=5"),
        (["--learning-rate=1e-3"], "optimizer.learning_rate=1e-3"),
        (["--optimizer.warmup", "3"], "give optimizer.warmup=3"),
        (["--seed"], "give seed=VALUE"),
        (["-n", "x"], "No such option: -n; settings have no dashes, so give name=x"),
        (["-name", "x"], "No such option: -name; settings have no dashes, so give name=x"),
        (["--nmae=x"], "give name=x"),
        (["-s", "3"], "give seed=3 or steps=3"),
    ],
)
def test_a_setting_given_as_an_option_is_told_how_it_is_written(command, given, meant):
    for name in ("train", "plan", "evaluate"):
        status, _, errors = command(name, "some.yaml", *given)
        assert status == 2 and said(errors).endswith(meant)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("train", "some.yaml", "--localy"), "No such option: --localy; did you mean --local?"),
        (("train", "some.yaml", "--output_dir=x"), "did you mean --runs?"),
        (("evaluate", "demo", "--output_dir=x"), "--output_dir; pcpo-ray evaluate --help lists those there are"),
        (("train", "some.yaml", "-l"), "did you mean --local or --log-level or --log-json?"),
        (("train", "some.yaml", "--nope", "1"), "--nope; pcpo-ray train --help lists those there are"),
        (("report", "demo", "--wacth"), "did you mean --watch?"),
        (("status", "-w"), "did you mean --watch?"),
        (("sample", "demo", "a ring", "-n", "3"), "-n; pcpo-ray sample --help lists those there are"),
        (("bench", "loop", "-z"), "-z; pcpo-ray bench loop --help lists those there are"),
        (("-n", "train"), "-n; pcpo-ray --help lists those there are"),
    ],
)
def test_an_unknown_option_is_told_the_nearest_real_one(command, words, meant):
    status, _, errors = command(*words)
    assert status == 2 and said(errors).endswith(meant)


@pytest.mark.parametrize("option", ["runs=x", "resume=true", "local=true", "log_level=debug"])
def test_an_option_given_as_a_setting_is_told_to_be_one(command, option):
    status, _, errors = command("train", "shapes_pcpo", option)
    name = option.partition("=")[0].replace("_", "-")
    assert status == 1 and f"unknown key (did you mean --{name}?)" in errors
