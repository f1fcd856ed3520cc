"""A judge behind real HTTP that answers as vLLM does: its scores, its faults, and what stays secret."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pcpo_ray import config, rewards
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import http_client, judge, judge_template
from tests.support.judged import KEY, MODEL, Vllm

LEVELS = (51, 204, 102)
IMAGES = np.stack([np.full((8, 8, 3), level, np.uint8) for level in LEVELS])
TEXTS = ["a red cube", "ein Würfel with {braces}", "three"]


@pytest.fixture
def serving(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE", 0.01)
    servers = []

    def start(*faults, key=None, lists=True):
        servers.append(Vllm(faults, key, lists=lists))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judging(server, **changes):
    settings = {"url": server.url, "model": MODEL, "timeout": 1.0, "patience": 20.0, **changes}
    return rewards.load(config.Judge(kind="judge", **settings), torch.device("cpu"))


def test_yes_no_is_the_probability_of_yes_among_both(serving):
    server = serving()
    made = judging(server)
    assert made.score(IMAGES, TEXTS) == pytest.approx([0.2, 0.8, 0.4])
    assert made.taken() == {"prompt": 300, "completion": 21}
    assert made.taken() == {"prompt": 0, "completion": 0}
    texts = [body["messages"][-1]["content"][-1]["text"] for body in server.asked]
    assert sorted(text.splitlines()[-1] for text in texts) == sorted(f"Caption: {text}" for text in TEXTS)
    assert all(body["max_tokens"] == 1 for body in server.asked)


@pytest.mark.parametrize(
    ("template", "expected"), [(None, [0.2, 0.8, 0.4]), ("checklist", [0.25, 0.75, 0.5])], ids=["axes", "checklist"]
)
def test_a_number_is_read_by_the_templates_pattern_and_scaled(serving, template, expected):
    made = judging(serving(), mode="score", template=template)
    assert made.score(IMAGES, TEXTS) == pytest.approx(expected)
    assert made.score(IMAGES[1:], TEXTS[1:]) == pytest.approx(expected[1:])


def test_pairwise_is_the_fraction_of_comparisons_won_in_the_group(serving):
    server = serving()
    made = judging(server, mode="pairwise")
    assert isinstance(made, rewards.GroupReward)
    assert made.score_group(IMAGES, "a cube") == [0.0, 1.0, 0.5]
    assert len(server.asked) == 3


def test_random_rounds_compare_each_image_as_often_first_as_second():
    np.random.seed(0)
    pairs = judge.compared(8, rounds=2)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 16
    assert [sum(pair[place] == image for pair in pairs) for image in range(8) for place in (0, 1)] == [2] * 16
    assert len(judge.compared(8, rounds=None)) == len(judge.compared(8, rounds=4)) == 28
    firsts = [sum(first == image for first, _ in judge.compared(8, rounds=None)) for image in range(8)]
    assert set(firsts) == {3, 4}


@pytest.mark.parametrize("fault", [429, 500, 503, "slow", "truncated"])
def test_a_fault_that_passes_is_tried_again(serving, fault):
    server = serving(fault)
    assert judging(server).score(IMAGES[:2], TEXTS[:2]) == pytest.approx([0.2, 0.8])
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        ("score", "I cannot rate this."),
        ("score", "Alignment Score (1-5): 4\nCoherence Score (1-5): 4"),
        ("score", "Alignment Score (1-5): 4\nCoherence Score (1-5): 4\nStyle Score (1-5): 40"),
        ("score", "Alignment Score (1-5): 4\nStyle Score (1-5): 4\nStyle Score (1-5): 4"),
        ("score", "half"),
        ("yes_no", "Perhaps"),
        ("yes_no", "half"),
    ],
)
def test_an_answer_that_cannot_be_read_is_missing_and_logged(serving, caplog, mode, answer):
    made = judging(serving(answer), mode=mode, concurrency=1)
    with caplog.at_level(logging.WARNING):
        first, second = made.score(IMAGES[:2], TEXTS[:2])
    assert np.isnan(first) and second == pytest.approx(0.8)
    assert f"no score can be read in the answer of {MODEL}" in caplog.text


ODD = [
    {"logprobs": {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": 1e9}]}]}},
    {"logprobs": {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": None}]}]}},
    {"logprobs": {"content": [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": float("nan")}]}]}},
    {"logprobs": {"content": [{"token": "Yes", "top_logprobs": []}]}},
    {"logprobs": {"content": [{"top_logprobs": ["Yes"]}]}},
    {"logprobs": {"content": []}},
    {"logprobs": []},
    {"logprobs": None},
    {"message": None},
    {"message": {"content": None}},
    {"message": {"content": [{"type": "image_url"}]}},
    {"message": {"content": 4}},
]


@pytest.mark.parametrize("mode", ["yes_no", "score", "pairwise"])
@pytest.mark.parametrize("choice", ODD, ids=str)
def test_an_answer_of_any_other_shape_is_missing_and_no_error(serving, mode, choice):
    made = judging(serving(*[choice] * 2), mode=mode, concurrency=1)
    scores = made.score(IMAGES[:2], TEXTS[:2]) if mode != "pairwise" else made.score_group(IMAGES[:2], "a cube")
    asked = "logprobs" in choice
    assert all(math.isnan(score) for score in scores) or asked != (mode == "yes_no")
    assert all(math.isnan(score) or 0 <= score <= 1 for score in scores)


@pytest.mark.parametrize(
    ("answer", "better"),
    [
        ("They differ.\n**Image 2 is better**", 1),
        ("Image 1 is better.", 0),
        ("One might think Image 1 is better at colours, but overall", None),
        ("Image 2 is better in shape. Overall, both are equal.", None),
        ("It is not true that Image 1 is better", None),
    ],
)
def test_a_comparison_is_read_from_a_line_of_its_own_only(answer, better):
    assert judge_template.read("pairwise", None).better(answer) == better


def test_numbers_are_read_from_lines_with_bold_type_too():
    answer = "**Alignment Score (1-5):** 5\n**Coherence Score (1-5):** 5\n**Style Score (1-5):** 2"
    assert judge_template.read("score", None).number(answer) == pytest.approx(0.75)
    assert judge_template.read("score", "checklist").number("a cube: met\n**Met:** 2 of 3") == pytest.approx(2 / 3)


def test_an_answer_in_parts_is_read_as_one(serving):
    parts = [{"type": "text", "text": "Neither is bad.\nImage 2"}, {"type": "text", "text": " is better"}]
    made = judging(serving({"message": {"content": parts}}), mode="pairwise")
    assert made.score_group(IMAGES[:2], "a cube") == made.score_group(IMAGES[:2], "a cube") == [0.0, 1.0]


def test_an_answer_that_was_cut_off_is_missing(serving):
    made = judging(serving({"finish_reason": "length"}), mode="pairwise")
    assert np.isnan(made.score_group(IMAGES[:2], "a cube")).all()


def test_an_unread_comparison_counts_for_neither_image(serving):
    made = judging(serving("Both are fine.", "Both are fine."), mode="pairwise", concurrency=1)
    scores = made.score_group(IMAGES, "a cube")  # only the last pair, images 1 and 2, is decided
    assert np.isnan(scores[0]) and scores[1:] == [1.0, 0.0]


def test_a_server_that_stays_busy_is_named_when_the_patience_ends(serving):
    made = judging(serving(*[503] * 50), patience=0.3)
    with pytest.raises(RewardError, match=r"chat/completions failed \d+ times.*status 503"):
        made.score(IMAGES[:1], TEXTS[:1])


def test_the_key_comes_from_the_environment_and_stands_in_no_message(serving, monkeypatch, caplog):
    server = serving("odd", key=KEY)
    with pytest.raises(RewardError, match="environment variable JUDGE_KEY, which is not set"):
        judging(server, key="JUDGE_KEY")
    with pytest.raises(RewardError, match="it wants a token"):
        judging(server)
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    with pytest.raises(RewardError) as refused:
        judging(server, key="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with caplog.at_level(logging.DEBUG):
        assert np.isnan(judging(server, key="JUDGE_KEY").score(IMAGES[:1], TEXTS[:1])[0])
    assert KEY not in caplog.text and "sk-wrong" not in str(refused.value)
    assert KEY not in json.dumps(server.asked)


def test_a_key_that_the_server_repeats_stands_in_no_message(serving, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with caplog.at_level(logging.DEBUG):
        assert np.isnan(judging(serving("echo", key=KEY), key="JUDGE_KEY").score(IMAGES[:1], TEXTS[:1])[0])
    assert "who is Bearer ***?" in caplog.text and KEY not in caplog.text
    with pytest.raises(RewardError, match=r"Unauthorized: Bearer \*\*\*") as refused:
        judging(serving(key="sk-another"), key="JUDGE_KEY")
    assert KEY not in str(refused.value)


def test_an_answer_that_a_proxy_compressed_is_read(serving):
    server = serving("compressed")
    assert judging(server, concurrency=1).score(IMAGES[:2], TEXTS[:2]) == pytest.approx([0.2, 0.8])
    assert len(server.asked) == 2


def test_a_server_that_streams_or_says_nothing_gives_missing_scores(serving):
    server = serving("stream", "")
    assert np.isnan(judging(server, concurrency=1).score(IMAGES[:2], TEXTS[:2])).all()
    assert all(body["stream"] is False for body in server.asked)


@pytest.mark.parametrize("used", [None, [1], {"prompt_tokens": float("inf")}, {"prompt_tokens": "7"}, 3], ids=str)
def test_tokens_that_are_counted_in_another_way_lose_no_score(serving, used):
    made = judging(serving((used,)), concurrency=1)
    assert made.score(IMAGES[:1], TEXTS[:1]) == pytest.approx([0.2])
    assert made.taken() == {"prompt": 0, "completion": 0}


def test_a_server_without_a_list_of_models_is_asked_all_the_same(serving, caplog):
    made = judging(serving(lists=False))
    assert "with /v1 where it has one?; whether it serves" in caplog.text
    assert made.score(IMAGES[:1], TEXTS[:1]) == pytest.approx([0.2])


def test_a_model_that_is_not_served_is_refused_with_those_that_are(serving):
    with pytest.raises(RewardError, match=f"serves {MODEL} and not 'Qwen'"):
        judging(serving(), model="Qwen")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 2}, "rounds is 2 with mode yes_no"),
        ({"url": "https://me:secret@host/v1"}, "an environment variable that holds a secret in `key`"),
        ({"url": "https://host/v1?api-key=secret"}, r"url has \?\.\.\. at its end, where paths are to follow"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, words):
    settings = {"kind": "judge", "url": "http://localhost/v1", "model": "m", **changes}
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(config.Judge).validate_python(settings)


def test_every_shipped_template_can_be_read_in_its_mode():
    names = sorted(path.stem for path in judge_template.SHIPPED.glob("*.yaml"))
    assert names == ["better", "checklist", "question", "unified_reward_2"]
    modes = {"better": "pairwise", "checklist": "score", "question": "yes_no", "unified_reward_2": "score"}
    assert all("a cat" in judge_template.read(modes[name], name).asked("a cat") for name in names)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mode: yes_no\ntext: Good?", "no {prompt}"),
        ("mode: score\ntext: '{prompt}'", "group"),
        ("mode: score\ntext: '{prompt}'\npattern: '(?P<value>[0-9])'", "low is None"),
        ("mode: score\ntext: '{prompt}'\npattern: '(['", "no regular expression"),
        ("mode: yes_no\ntext: '{prompt}'\nlow: 1", "leave out all but text"),
        ("mode: yes_no\ntext: '{prompt}'", "is for mode yes_no, and the judge's mode is score"),
        ("mode: score\ntekst: '{prompt}'", "tekst"),
    ],
)
def test_a_template_that_cannot_work_is_refused_before_the_start(tmp_path, text, words):
    (tmp_path / "own.yaml").write_text(text)
    reward = config.Judge(
        kind="judge", url="http://localhost/v1", model="m", mode="score", template=str(tmp_path / "own.yaml")
    )
    with pytest.raises(RewardError) as refused:
        rewards.check(reward)
    assert words in str(refused.value) and "own.yaml" in str(refused.value)


def test_an_unknown_template_is_named_with_the_shipped_ones():
    reward = config.Judge(kind="judge", url="http://localhost/v1", model="m", template="questoin")
    with pytest.raises(RewardError, match=r"questoin.*question"):
        rewards.check(reward)
