"""A reward, a model, a credit kind and a process are each declared in one place, and completely."""

import dataclasses
import inspect
import pkgutil
from typing import Any, get_args

import pytest
import torch

from pcpo_ray import config, rewards
from pcpo_ray.commands.plan import scoring
from pcpo_ray.config.base import Family, kinds, kinds_by_family, members
from pcpo_ray.config.shipped import Network
from pcpo_ray.models.pipeline import PipelineDenoiser

FILES = {"head": "head.pth", "weights": "weights.pt", "model": "folder", "url": "http://127.0.0.1:1"}
"""A value for every key of a shipped reward that has no default."""


def made(kind):
    """Make the config of a shipped reward, given what it cannot do without."""
    cls: Any = config.SHIPPED_REWARDS[kind]
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name != "kind"]
    return cls(kind=kind, **{name: FILES[name] for name in required})


shipped = pytest.mark.parametrize("kind", config.SHIPPED_REWARDS)


def test_every_reward_class_is_shipped_or_the_users_own():
    classes = members(config.Reward)
    assert {*config.SHIPPED_REWARDS.values(), config.CustomReward} == set(classes)
    assert all(issubclass(cls, config.ShippedReward) for cls in classes if cls is not config.CustomReward)


@shipped
def test_a_shipped_rewards_scorer_is_a_class_with_one_of_the_methods(kind):
    reward = made(kind)
    scorer: Any = rewards.scorer_of(reward)
    (method,) = (name for name in rewards.METHODS if hasattr(scorer, name))
    inspect.signature(getattr(scorer, method)).bind("self", *rewards.METHODS[method])
    assert (method == "score_group") == reward.compares_images
    on_device = {"device": torch.device("cpu")} if reward.on_device else {}
    inspect.signature(scorer).bind(**reward.arguments, **on_device)
    inspect.signature(getattr(scorer, "check", lambda reward: None)).bind(reward)
    assert inspect.isclass(scorer)


@shipped
def test_a_shipped_reward_says_unit_and_meaning_of_each_kind(kind):
    cls = config.SHIPPED_REWARDS[kind]
    assert set(cls.scales) == set(kinds(cls))
    scale = made(kind).scale
    assert scale.unit and scale.meaning


@shipped
def test_a_shipped_rewards_network_is_measured_or_said_to_be_unknown(kind):
    reward = made(kind)
    assert reward.network in get_args(Network)
    assert (reward.network == "clip") == (reward.clip is not None)


def test_a_network_that_the_plan_cannot_measure_is_named(monkeypatch):
    monkeypatch.setattr(config.Grain, "network", "other")
    own = config.CustomReward(kind="mine:Judge")
    every = [config.Grain(kind="grain"), config.Jpeg(kind="jpeg_compressibility"), own]
    assert scoring.own(every) == ["Judge"] and scoring.unknown(every) == ["grain"]


def test_each_reward_takes_the_memory_of_its_clip_model():
    one, two = config.ClipScore(kind="clip_score"), config.Diversity(kind="diversity")
    assert list(scoring.clips([one, two])) == ["shapes-clip"]
    hps = config.Hps(kind="hps_v2.1", weights="hps.pt")
    assert scoring.clips([hps]) == {"ViT-H-14 (hps_v2.1)": ("ViT-H-14", False)}


def test_every_model_kind_is_on_the_table_with_a_denoiser():
    assert {*config.BACKBONES, "custom"} == set(kinds(config.Model))
    for backbone in config.BACKBONES.values():
        denoiser = pkgutil.resolve_name(backbone.denoiser)
        assert issubclass(denoiser, PipelineDenoiser) and denoiser.pipeline_class == backbone.pipeline
        assert backbone.family in get_args(Family)


def test_a_custom_models_backbone_is_the_users_own():
    model = config.Model(kind="custom", path="folder", denoiser="mine:Model", family="flow")
    assert model.backbone == config.Backbone("mine:Model", "flow")


@pytest.mark.parametrize("union", [config.Credit, config.Process])
def test_every_kind_belongs_to_a_family(union):
    by_family = kinds_by_family(union)
    assert set(by_family) == set(get_args(Family))
    assert {kind for found in by_family.values() for kind in found} == {
        kind for cls in members(union) for kind in kinds(cls)
    }
    assert all(by_family.values())


def test_kinds_of_a_family_stand_in_the_order_of_the_union():
    assert kinds_by_family(config.Credit)["flow"] == (
        "native", "reweight", "proportionate", "tilted", "grpo_guard", "flash_grpo", "fair_clip", "fair_clip2",
        "entropy", "attention"
    )  # fmt: skip
    assert kinds_by_family(config.Process)["diffusion"] == ("ddim",)


@pytest.mark.parametrize("credit", members(config.Credit))
def test_every_credit_says_whether_it_changes_the_sampler(credit):
    assert isinstance(credit.changes_sampler, bool)
