"""Configs of every kind, drawn: what goes together is drawn together, so that most are legal; then a key may be off.

A config is a small model and what differs from tests.support.small.run, by dotted key: `overrides` prints it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from pcpo_ray import config
from pcpo_ray.config import algorithm
from pcpo_ray.config.base import kinds, kinds_by_family
from tests.support import small
from tests.support.families import FAMILIES

MODELS = ("small_sd", "small_sdxl", "small_sd3", "small_flux", "small_flux_dev")
"""Fixtures of tests/conftest.py; FAMILIES are the newer kinds."""

FLOW = ("small_sd3", "small_flux", "small_flux_dev", *FAMILIES)

ONE_BRANCH = ("small_flux_dev", "flux2_dev")
"""Models whose guidance scale is an input of the network."""

ATTENDING = {kind for kind, one in config.BACKBONES.items() if one.attention is not None}
"""The kinds whose attention to the prompt is read."""

WITH_FACTOR = {kind for cls in algorithm.WITH_FACTOR for kind in kinds(cls)}

Changes = Mapping[str, Any]


def run_of(folder: Path, changes: Changes) -> config.Run:
    """The run of a small model with these changes. Raises ConfigError."""
    return small.run(folder, **{key.replace(".", "__"): _yaml(value) for key, value in changes.items()})


def overrides(changes: Changes) -> str:
    """The changes, a line each, as the command line takes them."""
    return "\n".join(f"{key}={_yaml(value)}" for key, value in changes.items())


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


@st.composite
def likely(draw: Callable[..., Any], model: str) -> dict[str, Any]:
    """Changes that mostly make a legal config of a model."""
    found = _training(draw, HALVES_OF_NEWER if model in FAMILIES else ("bfloat16", "float16"))
    found |= _sampling(draw, model in FLOW, model not in ONE_BRANCH)
    found |= _method(draw, model in FLOW, model not in FAMILIES or model in ATTENDING, found)
    found |= _loop(draw, found)
    if model in FAMILIES:
        found |= dict(zip(("sampling.height", "sampling.width"), FAMILIES[model].size, strict=True))
    return {key: value for key, value in found.items() if DEFAULTS.get(key, ...) != value}


@st.composite
def anything(draw: Callable[..., Any], model: str) -> dict[str, Any]:
    """As `likely`, with one to three keys taken from ODD."""
    keys = draw(st.lists(st.sampled_from(sorted(ODD)), min_size=1, max_size=3, unique=True))
    return {**draw(likely(model)), **{key: draw(st.sampled_from(ODD[key])) for key in keys}}


DEFAULTS = {
    "model.dtype": "float32",
    "model.train": {"kind": "lora", "rank": 2, "alpha": 2},
    "model.gradient_checkpointing": False,
    "model.vae_tiling": False,
    "model.vae_slicing": False,
    "sampling.steps": 4,
    "sampling.trained_steps": None,
    "sampling.subset": None,
    "sampling.shared_noise": False,
    "sampling.detach_unconditional": False,
    "sampling.batch": None,
    "sampling.storage": "float32",
    "sampling.shift": None,
    "evaluation.sampling": None,
    "objective.clip_scale": "constant",
    "objective.step_loss": "uniform",
    "objective.kl": 0.0,
    "objective.correction": None,
    "objective.log_ratio": "decomposed",
    "optimizer.minibatches": 1,
    "optimizer.epochs": 1,
    "optimizer.average": None,
    "optimizer.mixed_precision": "no",
    "optimizer.micro_batch": None,
    "rollout.max_staleness": 0,
    "combine": "scores",
    "monitors": {},
}
"""What a change need not say."""

BRIGHTNESS = {"kind": "tests.support.small:Slow"}
JPEG = {"kind": "jpeg_compressibility", "weight": 0.5}

ODD: dict[str, list[Any]] = {
    "model.dtype": ["float64", "float16"],
    "model.train": [
        {"kind": "full"},
        {"kind": "lora", "rank": 0},
        {"kind": "lora", "rank": 2, "alpha": 0},
        {"kind": "lora", "rank": 2, "targets": []},
        {"kind": "lora", "rank": 2, "targets": ["to_nowhere"]},
        {"kind": "lora", "rank": 2, "init": "zeros"},
        {"kind": "dora"},
    ],
    "model.gradient_checkpointing": ["sometimes"],
    "sampling.steps": [0, 1, 2, 1001],
    "sampling.trained_steps": [0, 1, 4, 6, 7],
    "sampling.process": [
        {"kind": "ddim"},
        {"kind": "ddim", "eta": 1.5},
        {"kind": "ddim", "eta": 0},
        {"kind": "constant_noise", "eta": 3.0},
        {"kind": "ratio_noise", "a": -0.5},
        {"kind": "ratio_noise", "a": 4.0},
        {"kind": "coefficients_preserving", "eta": 1.0},
        {"kind": "coefficients_preserving", "eta": 1.5},
        {"kind": "proportionate_noise"},
        {"kind": "proportionate_noise", "zeta": 0.1},
        {"kind": "renoised"},
        {"kind": "brownian"},
    ],
    "sampling.subset": [
        {"kind": "share", "share": 0},
        {"kind": "share", "share": 1.5},
        {"kind": "window", "size": 7},
        {"kind": "window", "size": 1, "order": "backwards"},
        {"kind": "window", "size": 1, "order": "per_prompt"},
    ],
    "sampling.guidance_scale": [-1, 0, 0.5, 1, True],
    "sampling.height": [8, 12, 17, 18, 20],
    "sampling.batch": [0, 64],
    "sampling.shift": [0, 0.3, 3.0],
    "sampling.storage": ["int8", "float16"],
    "evaluation.sampling": [
        {"steps": 0},
        {"steps": 1, "deterministic": True},
        {"steps": 1001},
        {"steps": 8},
        {"guidance_scale": -2},
    ],
    "credit": [
        {"kind": "native"},
        {"kind": "reweight"},
        {"kind": "released", "w_star": 0.1},
        {"kind": "released", "w_star": 1e6},
        {"kind": "variance", "w_star": 0.01},
        {"kind": "variance", "w_star": 1e6},
        {"kind": "interpolate", "w_star": -1},
        {"kind": "interpolate"},
        {"kind": "proportionate"},
        {"kind": "tilted", "slope": 1},
        {"kind": "tilted"},
        {"kind": "grpo_guard"},
        {"kind": "fair_clip2"},
        {"kind": "flash_grpo"},
        {"kind": "entropy"},
        {"kind": "attention"},
    ],
    "objective": [
        {"kind": "ratio"},
        {"kind": "log_hinge", "clip_range": 0},
        {"kind": "divergence_mask", "threshold": 0},
        {"kind": "divergence_mask", "clip_range": 1e-4},
    ],
    "objective.step_loss": ["noise", "time"],
    "objective.kl": [-0.1, 0.1],
    "objective.correction": [0, 1.0],
    "objective.log_ratio": ["replay", "flow_cps", "exact"],
    "advantage": [
        {"kind": "prompt_history", "buffer": 2, "minimum": 16},
        {"kind": "group", "correction": 2},
        {"kind": "group", "clip": 0},
        {"kind": "batch", "epsilon": 0},
    ],
    "optimizer.learning_rate": [0, -1e-4, "fast"],
    "optimizer.weight_decay": [-0.1, 10.0],
    "optimizer.beta1": [1, 0],
    "optimizer.minibatches": [0, 2, 4],
    "optimizer.epochs": [0, 3],
    "optimizer.average": [0, 1, 0.5],
    "optimizer.mixed_precision": ["bf16", "fp16"],
    "optimizer.micro_batch": [0, "all", "auto"],
    "optimizer.max_gradient_norm": [0, 1e9],
    "rollout.prompts": [0, 1],
    "rollout.images": [0, 1, 2],
    "rollout.max_staleness": [-1, 2],
    "rewards": [[], [BRIGHTNESS, BRIGHTNESS], [{**BRIGHTNESS, "label": "reward"}], [{"kind": "brightness"}]],
    "combine": ["ranks", "advantages"],
    "monitors": [{"diversity": 1.0}, {"patience": 0}],
    "workers.learner.strategy": ["fsdp2", "ddp"],
    "workers.learner.offload": [True, False],
    "workers.park": [True],
    "evaluation.images": [0, 1],
}
"""Values that are refused, or go with few others."""


HALVES_OF_NEWER = ("float16",)
"""Some networks take their time and guidance in bfloat16, as their pipelines give them: rounded by up to 0.4%."""


def _training(draw: Callable[..., Any], halves: Sequence[str]) -> dict[str, Any]:
    dtype = draw(st.sampled_from(["float32", *halves]))
    lora = st.fixed_dictionaries(
        {"kind": st.just("lora"), "rank": st.sampled_from([2, 1, 4]), "alpha": st.sampled_from([2, 0.5, 16])},
        optional={
            "init": st.sampled_from(["gaussian", "kaiming"]),
            "targets": st.sampled_from([["to_q", "to_v"], ["to_k"]]),
        },
    )
    train = draw(st.one_of(lora, st.just({"kind": "full"})))
    full = train["kind"] == "full"
    flags = {f"model.{name}": draw(_rarely) for name in ("gradient_checkpointing", "vae_tiling", "vae_slicing")}
    mixed = "no" if dtype == "float16" else draw(st.sampled_from(["no", "no", "bf16"]))
    rates = [1e-4, 1e-6, 1e-5, 1e-3] if full else [1e-2, 1e-6, 1e-4]
    return {
        "model.dtype": dtype,
        "model.train": train,
        **flags,
        "optimizer.mixed_precision": mixed,
        "optimizer.learning_rate": draw(st.sampled_from(rates)),
        "optimizer.weight_decay": draw(st.sampled_from([1e-4, 0.0, 0.1])),
        "optimizer.average": draw(st.sampled_from([None, None, 0.5, 0.99])),
        "optimizer.epochs": draw(st.sampled_from([1, 1, 2])),
        "optimizer.max_gradient_norm": draw(st.sampled_from([1.0, 1e-3, 1e6])),
    }


def _sampling(draw: Callable[..., Any], flow: bool, branches: bool) -> dict[str, Any]:
    steps = draw(st.sampled_from([3, 2, 4, 5, 6]))
    trained = draw(st.one_of(st.none(), st.integers(1, steps - 1)))
    most = trained or steps - 1
    window = {"kind": st.just("window"), "size": st.integers(1, most)}
    subset = draw(
        st.one_of(
            st.none(),
            st.none(),
            st.builds(lambda share: {"kind": "share", "share": share}, st.sampled_from([0.6, 0.1, 1.0])),
            st.fixed_dictionaries({**window, "stride": st.integers(1, 2), "every": st.integers(1, 2)}),
            st.fixed_dictionaries({**window, "order": st.sampled_from(["random", "per_prompt"])}),
        )
    )
    process = draw(PROCESS if flow else st.builds(_kind("ddim", "eta"), st.sampled_from([1.0, 0.3])))
    evaluated = st.fixed_dictionaries(
        {"deterministic": st.just(True)},
        optional={"steps": st.integers(1, 6), "guidance_scale": st.sampled_from([1.0, 3.0])},
    )
    guidance = draw(st.sampled_from([1.0, 2.0, 7.5]))
    return {
        "sampling.steps": steps,
        "sampling.trained_steps": trained,
        "sampling.process": process,
        "sampling.subset": subset,
        "sampling.guidance_scale": guidance,
        "sampling.shared_noise": process["kind"] != "renoised" and draw(_rarely),
        "sampling.detach_unconditional": branches and guidance != 1.0 and draw(_rarely),
        "sampling.batch": draw(st.sampled_from([None, None, 1, 2, 3])),
        "sampling.storage": draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        "sampling.shift": draw(st.sampled_from([None, 1.0, 4.0])) if flow else None,
        "evaluation.sampling": draw(st.one_of(st.none(), evaluated)),
    }


def _method(draw: Callable[..., Any], flow: bool, attends: bool, found: Changes) -> dict[str, Any]:
    full = found["model.train"]["kind"] == "full"
    preserving = found["sampling.process"]["kind"] == "coefficients_preserving"
    window = (found["sampling.subset"] or {}).get("kind") == "window"
    left_out = {*(["interpolate"] if full else []), *(["entropy", "attention"] if window else [])}
    left_out |= set() if attends else {"attention"}
    renoised = found["sampling.process"]["kind"] == "renoised"
    left_out |= {"entropy", "attention", *WITH_FACTOR} if renoised else set()
    kind = draw(st.sampled_from([kind for kind in CREDITS_OF[flow] if kind not in left_out]))
    ratios = ["decomposed"]
    if kind == "native" and not renoised:
        ratios += ["replay", *(["flow_cps"] if preserving else [])]
    one_factor, masked = kind in WITH_FACTOR or renoised, draw(_rarely)
    limit = "threshold" if masked else "clip_range"
    return {
        "credit": draw(CREDITS[kind]),
        "objective": {
            "kind": "divergence_mask" if masked else draw(st.sampled_from(["log_hinge", "clipped_ratio"])),
            limit: draw(st.sampled_from([1e-2, 1e-4, 10.0])),
        },
        "objective.clip_scale": "constant" if masked else draw(st.sampled_from(["constant", "weight"])),
        "objective.step_loss": draw(st.sampled_from(["uniform"] if one_factor else ["uniform", "noise"])),
        "objective.kl": 0.0 if full else draw(st.sampled_from([0.0, 0.0, 0.01, 1.0])),
        "objective.correction": None if masked or renoised else draw(st.sampled_from([None, None, 1.0, 2.0])),
        "objective.log_ratio": draw(st.sampled_from(ratios)),
    }


def _loop(draw: Callable[..., Any], found: Changes) -> dict[str, Any]:
    prompts = draw(st.integers(1, 3))
    micro = [None, None, 1, 2, 5, "auto"]
    advantages = [
        {"kind": "group"},
        {"kind": "group", "scale": "batch", "correction": 0, "epsilon": 1e-4},
        {"kind": "batch"},
        {"kind": "prompt_history", "buffer": 4, "minimum": 2},
    ]
    two = draw(st.booleans())
    return {
        "rollout.prompts": prompts,
        "rollout.images": draw(st.integers(2, 4)),
        "rollout.max_staleness": draw(st.sampled_from([0, 0, 1])),
        "optimizer.minibatches": draw(st.integers(1, prompts)),
        "optimizer.micro_batch": draw(st.sampled_from(micro)),
        "advantage": draw(st.sampled_from(advantages)),
        "rewards": [BRIGHTNESS, JPEG] if two else [BRIGHTNESS],
        "combine": draw(st.sampled_from(["scores", "advantages"])) if two else "scores",
        "monitors": draw(st.sampled_from([{}, {"action": "stop", "patience": 1}])),
        "seed": draw(st.integers(0, 3)),
    }


_rarely = st.sampled_from([False, False, True])


def _kind(kind: str, name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {"kind": kind, name: value}


PROCESS = st.one_of(
    st.builds(_kind("constant_noise", "eta"), st.sampled_from([0.3, 0.8])),
    st.builds(_kind("ratio_noise", "a"), st.sampled_from([0.7, 0.3])),
    st.builds(_kind("coefficients_preserving", "eta"), st.sampled_from([0.8, 0.2])),
    st.just({"kind": "proportionate_noise"}),
    st.builds(_kind("renoised", "omega"), st.sampled_from(["uniform", "time", "time_squared"])),
)

CREDITS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "native": st.just({"kind": "native"}),
    "reweight": st.just({"kind": "reweight"}),
    "tilted": st.builds(_kind("tilted", "slope"), st.sampled_from([0.5, -0.9])),
    "released": st.builds(_kind("released", "w_star"), st.sampled_from([30.0, 4.5])),
    "variance": st.builds(_kind("variance", "w_star"), st.sampled_from([None, 50.0])),
    "interpolate": st.builds(_kind("interpolate", "w_star"), st.sampled_from([None, 0.7, 3.0])),
    "proportionate": st.just({"kind": "proportionate"}),
    "grpo_guard": st.just({"kind": "grpo_guard"}),
    "flash_grpo": st.just({"kind": "flash_grpo"}),
    "fair_clip": st.just({"kind": "fair_clip"}),
    "fair_clip2": st.just({"kind": "fair_clip2"}),
    "entropy": st.just({"kind": "entropy"}),
    "attention": st.just({"kind": "attention"}),
}

CREDITS_OF = {
    False: [kind for kind in CREDITS if kind in kinds_by_family(config.Credit)["diffusion"]],
    True: [kind for kind in CREDITS if kind in kinds_by_family(config.Credit)["flow"]],
}
