"""The check before a run catches what has been wrong with rewards and adapters, and passes what is right."""

import dataclasses
import json
import shutil
import socket
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pcpo_ray import config, shapes
from pcpo_ray.commands import check
from pcpo_ray.commands.check import known, of_model, of_rewards
from pcpo_ray.config import files
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import clip, clip_score, diversity, grain, grid, jpeg, nsfw, ocr
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.scorer import Scorer
from tests.support import ROOT, small
from tests.support.judged import MODEL, Vllm

CPU = torch.device("cpu")
CLIP = config.ClipScore(kind="clip_score")
PROMPTS = ["a cat", "two dogs", "a house", "a tree"]

OWN = ROOT / "tests" / "support" / "broken_rewards.py"


@pytest.fixture
def own(tmp_path, monkeypatch):
    shutil.copy(OWN, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda name: config.CustomReward(kind=f"mine:{name}")
    sys.modules.pop("mine", None)


def failed(reward):
    found = of_rewards.tried(small.run("model"), reward, PROMPTS, CPU)
    return {finding.tried for finding in found if finding.verdict == "failed"}


@pytest.mark.parametrize(
    ("name", "caught"),
    [
        ("Swapped", "its arguments are images, then prompts"),
        ("SwappedUnnamed", "the image moves it"),
        ("Constant", "the image moves it"),
        ("Deaf", "the prompt moves it"),
        ("Standardized", "scores are the same in other company"),
        ("Moody", "the same question has the same answer"),
        ("Sorted", "scores are the same in other company"),
        ("Remembers", "the image moves it"),
        ("Crashes", "it scores the probe images"),
        ("Nothing", "scores are finite"),
        ("Infinite", "scores are finite"),
        ("Gaps", "scores are finite"),
    ],
)
def test_a_broken_reward_of_the_users_own_is_caught(own, name, caught):
    assert caught in failed(own(name))


@pytest.mark.parametrize("name", ["Nothing", "Infinite", "Gaps"])
def test_missing_scores_are_told_once_and_blamed_on_nothing_else(own, name):
    assert failed(own(name)) == {"scores are finite"}


@pytest.mark.parametrize("name", ["Redness", "Spread"])
def test_a_sound_reward_of_the_users_own_passes(own, name):
    assert failed(own(name)) == set()


@pytest.mark.parametrize(
    "reward",
    [
        CLIP,
        config.Jpeg(kind="jpeg_compressibility"),
        config.Jpeg(kind="jpeg_incompressibility"),
        config.ShapesOracle(kind="shapes_oracle"),
        config.Grain(kind="grain"),
        config.Grid(kind="grid"),
    ],
    ids=lambda reward: reward.kind,
)
def test_shipped_rewards_pass(reward):
    assert failed(reward) == set()


def cropped(made):
    whole = made.preprocess
    return dataclasses.replace(made, normal=None, preprocess=lambda image: whole(image.crop((64, 64, 192, 192))))


def edges_cut_off(made):
    whole = made.preprocess
    return dataclasses.replace(made, normal=None, preprocess=lambda image: whole(image.crop((16, 16, 240, 240))))


def without_mean(made):
    whole, (mean, std) = made.preprocess, made.normal
    return dataclasses.replace(made, normal=None, preprocess=lambda image: whole(image) * std + mean)


def other_activation(made):
    def quick(tokens):
        gelu, torch.nn.GELU.forward = torch.nn.GELU.forward, lambda self, x: x * torch.sigmoid(1.702 * x)
        try:
            return made.encode_texts(tokens)
        finally:
            torch.nn.GELU.forward = gelu

    return dataclasses.replace(made, encode_texts=quick, known={})


def blue_for_red(made):
    return dataclasses.replace(made, encode_images=lambda pixels: made.encode_images(pixels.flip(1)))


def deaf(made):
    same = lambda tokens: made.encode_texts(tokens[:1].expand_as(tokens))  # noqa: E731
    return dataclasses.replace(made, encode_texts=same, known={})


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (cropped, "known scores"),
        (cropped, "the image's edges move it"),
        (edges_cut_off, "the image's edges move it"),
        (without_mean, "known scores"),
        (other_activation, "known scores"),
        (blue_for_red, "known scores"),
        (deaf, "the prompt moves it"),
    ],
)
def test_a_clip_reward_with_wrong_preprocessing_is_caught(monkeypatch, broken, caught):
    load = clip.load
    monkeypatch.setattr(clip, "load", lambda *asked: broken(load(*asked)))
    assert caught in failed(CLIP)


def told(reward):
    """The finding about known scores."""
    found = of_rewards.tried(small.run("model"), reward, PROMPTS, CPU)
    return next(finding for finding in found if finding.tried == "known scores")


def worse_jpeg(monkeypatch):
    size = jpeg.Jpeg._kilobytes

    def smaller(self, image):
        self.quality = 85
        return size(self, image)

    monkeypatch.setattr(jpeg.Jpeg, "_kilobytes", smaller)
    return config.Jpeg(kind="jpeg_compressibility")


def blue_for_red_nsfw(monkeypatch):
    score = nsfw.Nsfw.score
    monkeypatch.setattr(nsfw.Nsfw, "score", lambda self, images, prompts: score(self, images[..., ::-1], prompts))
    return config.Nsfw(kind="nsfw")


def cropped_grain(monkeypatch):
    score = grain.Grain.score
    monkeypatch.setattr(grain.Grain, "score", lambda self, images, prompts: score(self, images[:, ::2, ::2], prompts))
    return config.Grain(kind="grain")


def smoothed_grid(monkeypatch):
    score = grid.Grid.score
    monkeypatch.setattr(grid.Grid, "score", lambda self, images, prompts: score(self, images // 2 * 2, prompts))
    return config.Grid(kind="grid")


def far_diversity(monkeypatch):
    score = diversity.Diversity.score_group
    made = lambda self, images, prompt: [2 * one for one in score(self, images, prompt)]  # noqa: E731
    monkeypatch.setattr(diversity.Diversity, "score_group", made)
    return config.Diversity(kind="diversity")


@pytest.mark.parametrize("broken", [worse_jpeg, blue_for_red_nsfw, cropped_grain, smoothed_grid, far_diversity])
def test_scores_that_are_known_are_told_from_wrong_ones(monkeypatch, broken):
    with pytest.MonkeyPatch.context() as patch:
        reward = broken(patch)
        assert told(reward).verdict == "failed"
    assert told(reward).verdict == "passed"


def test_scores_of_other_files_and_settings_are_not_known(tmp_path):
    of = {
        "jpeg": config.Jpeg(kind="jpeg_compressibility", quality=80),
        "another CLIP": config.ClipScore(kind="clip_score", model="ViT-B-32", weights=str(tmp_path / "weights.pt")),
        "one word": config.Ocr(kind="ocr", detect=False),
        "the user's": config.CustomReward(kind="mine:grid"),
    }
    assert {name: known.of(reward) for name, reward in of.items()} == dict.fromkeys(of)


@pytest.mark.parametrize("mode", ["yes_no", "score"])
def test_a_judge_that_ignores_the_prompt_ranks_no_image_by_it(mode):
    server = Vllm()  # it looks at the image alone
    asked = config.Judge(kind="judge", url=server.url, model=MODEL, mode=mode)
    assert failed(asked) == {"the prompt moves it", "images of their prompts above images of others"}
    assert failed(dataclasses.replace(asked, mode="pairwise")) == set()
    server.shutdown()
    server.server_close()


def test_a_server_that_is_away_is_said_within_seconds(monkeypatch):
    monkeypatch.setattr(of_rewards, "PATIENCE", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    (finding,) = of_rewards.tried(small.run("model"), config.Remote(kind="remote", url=url), PROMPTS, CPU)
    assert finding.verdict == "failed" and "patience 0" in finding.detail and "its server" in finding.remedy


@pytest.mark.parametrize("layer", [0, 4, 7])
def test_a_rewards_file_with_a_layer_of_zeros_is_caught_also_at_the_start(tmp_path, small_sd, layer):
    described = json.loads((shapes.checkpoint("shapes-clip") / "open_clip_config.json").read_text())
    width = described["model_cfg"]["embed_dim"]
    sizes = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    state = {f"layers.{at}.weight": torch.randn(size) * (at != layer) for at, size in sizes.items()}
    state |= {f"layers.{at}.bias": torch.randn(rows) for at, (rows, _) in sizes.items()}
    torch.save(state, tmp_path / "head.pth")
    reward = config.Aesthetic(kind="aesthetic", head=str(tmp_path / "head.pth"), model="shapes-clip")
    assert failed(reward) == {"the image moves it"}  # and no word about edges
    run = small.run(small_sd, rewards=f"[{{kind: aesthetic, head: '{tmp_path / 'head.pth'}', model: shapes-clip}}]")
    with pytest.raises(RewardError, match="aesthetic gives two different images the scores"):
        Scorer(run, CPU)


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora.down", "lora.up"), ("lora_down", "lora_up")])
@pytest.mark.parametrize(("down", "up", "verdict"), [(1.0, 0.0, "failed"), (0.0, 0.1, "failed"), (1.0, 0.1, "passed")])
def test_an_adapter_of_zeros_is_caught(tmp_path, names, down, up, verdict):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = {
        f"{name}.{names[0]}.weight": torch.full((2, 8), down),
        f"{name}.{names[1]}.weight": torch.full((8, 2), up),
    }
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    found = of_model.adapter(small.run("model", model__train=f"{{kind: lora, start: '{tmp_path}'}}"))
    assert found.verdict == verdict and (verdict == "passed" or "is zero; get the file again" in found.line)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (b"", "cannot be read as a LoRA"),
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
        ({}, "holds no weights at all"),
        ({"lora_unet_to_q.hada_w1_a": torch.ones(2, 2)}, "a DoRA, a LoHa, a LoKr"),
        ({"unet.to_q.lora_A.weight": torch.full((2, 8), float("nan"))}, "1 weights that are not finite"),
    ],
    ids=["empty file", "pointer", "no weights", "LoHa", "nan"],
)
def test_an_adapter_that_is_no_lora_is_a_finding_by_its_own_name(tmp_path, small_sd, weights, told):
    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.write_bytes(weights) if isinstance(weights, bytes) else save_file(weights, file)
    run = small.run(small_sd, model__train=f"{{kind: lora, start: '{tmp_path}'}}")
    wrong = [finding for finding in check.findings(run, lambda finding: None) if finding.verdict == "failed"]
    assert wrong and all(finding.part in ("files", "model") and told in finding.detail for finding in wrong)


def test_a_whole_run_that_is_sound_passes_on_two_images_and_one_update(small_sd):
    run = small.run(small_sd, evaluation__rewards="[{kind: grid}]")
    lines, phases = [], []
    found = check.findings(run, lambda finding: lines.append(finding.line), phase=phases.append)
    assert phases[0] == "checking the model, the rewards and the prompts"
    assert phases[-1] == "trying the reward grid"  # a wait has a sign
    assert [finding.tried for finding in found if finding.verdict == "failed"] == []
    tried = {(finding.part, finding.tried): finding.detail for finding in found}
    assert tried["model", "the first log-ratio is 0"] == "0"
    assert "of the trained weights changed" in tried["model", "one update moves the weights"]
    assert {part for part, _ in tried} == {"files", "model", "jpeg_compressibility", "grid"}
    for reward in ("jpeg_compressibility", "grid"):
        assert len(tried[reward, "it scores the run's own images"].split()) == 2
    assert all(line.startswith(("passed ", "not applicable ")) for line in lines)


def test_the_command_prints_json_and_ends_with_1_where_something_failed(own, command, tmp_path, small_sd):
    run = small.run(small_sd, model__path=str(tmp_path / "absent"))
    (tmp_path / "run.yaml").write_text(files.dump(run))
    status, told, _ = command("check", "run.yaml", "--json")
    answer = json.loads(told)
    assert status == 1 and answer["failed"] >= 1
    assert "absent" in answer["findings"][0]["detail"] and answer["findings"][0]["verdict"] == "failed"


def test_a_reward_that_cannot_score_the_runs_own_images_is_caught(own, small_sd):
    run = small.run(small_sd, rewards="['mine:Picky']")
    found = [finding for finding in check.findings(run, lambda finding: None) if finding.verdict == "failed"]
    assert [finding.tried for finding in found] == ["it scores the run's own images"]
    assert "nan nan" in found[0].detail


def test_equal_scores_of_the_runs_own_images_are_said_and_no_failure(own):
    reward, images = own("Redness"), np.zeros((2, 64, 64, 3), np.uint8)
    found = of_rewards.tried(small.run("model"), reward, PROMPTS, CPU, {"a cat": images})
    assert found[-1].verdict == "passed" and "equal: a group such as this teaches nothing" in found[-1].detail


def test_an_error_of_the_models_libraries_is_a_finding_as_any_other(small_sd, monkeypatch):
    def update(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Learner, "update", update)
    found = check.findings(small.run(small_sd), lambda finding: None)
    (wrong,) = [finding for finding in found if finding.verdict == "failed"]
    assert wrong.part == "model" and "RuntimeError: out of memory" in wrong.detail
    assert {finding.part for finding in found} == {"files", "model", "jpeg_compressibility"}


def test_ocr_passes_and_one_that_reads_no_image_does_not(monkeypatch):
    for score in ("edits", "ctc"):
        assert failed(config.Ocr(kind="ocr", detect=False, score=score)) == set()
    assert failed(config.DdddOcr(kind="ddddocr")) == set()
    reward = config.Ocr(kind="ocr")
    assert failed(reward) == set()
    monkeypatch.setattr(ocr.Ocr, "read", lambda self, image: "open")
    assert {"the image moves it", "rendered words above noise"} <= failed(reward)


def test_the_command_ends_with_0_where_nothing_failed(command, tmp_path, small_sd):
    (tmp_path / "run.yaml").write_text(files.dump(small.run(small_sd)))
    status, told, _ = command("check", "run.yaml", "--json")
    answer = json.loads(told)
    assert status == 0 and answer["failed"] == 0 and len(answer["findings"]) > 8
    assert all(finding.keys() == {"part", "tried", "verdict", "detail", "remedy"} for finding in answer["findings"])
    status, told, _ = command("check", "run.yaml")
    assert status == 0 and told.splitlines()[-1] == "nothing failed"
    assert len(told.splitlines()) == len(answer["findings"]) + 1


def test_a_run_does_not_start_with_a_shipped_reward_of_equal_scores(monkeypatch, small_sd):
    run = small.run(small_sd, rewards="[{kind: clip_score}]")
    Scorer(run, CPU)
    monkeypatch.setattr(clip_score.ClipScore, "score", lambda self, images, prompts: [0.25] * len(images))
    with pytest.raises(RewardError, match=r"clip_score gives two different images the scores \[0.25, 0.25\]"):
        Scorer(run, CPU)
