"""Stored runs of a study, as training would leave them, with curves that a test chooses."""

import numpy as np
import yaml

from pcpo_ray.commands.study import plan
from pcpo_ray.config import files, recipes
from pcpo_ray.runs import intervals
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.recorder import Recorder

STEPS = 4
PROMPTS = ("<script>alert(1)</script>", "a red circle", 'a "quoted" square')
BASE = {
    "name": "base",
    "steps": STEPS,
    "model": {"kind": "stable_diffusion", "path": "shapes-sd"},
    "prompts": {"kind": "shapes"},
    "sampling": {"steps": 3, "process": {"kind": "ddim"}},
    "rewards": [{"kind": "clip_score"}],
    "credit": {"kind": "native"},
    "advantage": {"kind": "group"},
    "objective": {"kind": "clipped_ratio"},
    "rollout": {"prompts": 2, "images": 4},
    "evaluation": {"count": len(PROMPTS), "images": 2, "every": 2, "rewards": [{"kind": "shapes_oracle"}]},
}
EVALUATED = (0, 2, 4)
VERSIONS = ("Python 3.11", "pcpo_ray 0.1.0", "torch 2.15")


def study(**changes):
    data = {
        "name": "small",
        "base": BASE,
        "arms": {
            "ddpo": {},
            "pcpo": {
                "set": {"objective.kind": "log_hinge", "credit.kind": "reweight"},
                "varies": ["objective.kind", "credit"],
            },
        },
        "seeds": [1, 2, 3],
        "targets": {"kind": "gain", "values": [0.05, 0.1]},
        **changes,
    }
    return files.parse_as(plan.Study, data, source="study")


def recipes_in(folder, monkeypatch):
    """Make a folder the one of recipes: `shapes_small`, and `shapes_plain`, its baseline."""
    changes = {"rewards": [{"kind": "clip_score", "model": "shapes-clip"}]}
    for name in ("shapes_small", "shapes_plain"):
        own = {"name": name.replace("_", "-"), **changes}
        if name == "shapes_small":
            own |= {"objective": {"kind": "log_hinge"}, "credit": {"kind": "reweight"}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(BASE | own))
    monkeypatch.setattr(recipes, "BASELINES", {"shapes_small": "shapes_plain"})
    monkeypatch.setattr(recipes, "folder", lambda: folder)


def rising(gains):
    """Curves: every reward goes from 0.5 and a hundredth of the seed straight up by the arm's gain."""
    return lambda planned, step: 0.5 + planned.seed / 100 + gains[planned.arm] * step / STEPS


def store(folder, wanted, curve, **more):
    """Whole runs of those wanted, whose held-out reward at a step is `curve(planned, step)`."""
    for planned in wanted:
        one(folder, planned, curve, **more)


def one(folder, planned, curve, *, versions=VERSIONS, quality=False, until=STEPS, weights=(1.4, 1.4, 1.4)):
    run = planned.run
    record = Recorder.create(LocalFolder(local=folder / run.name), run)
    record.event("started", backend="in-process", device="CPU", cores=2, versions=list(versions))
    for step in range(until + 1):
        if step:
            record.record("train", step, row(step, weights))
        if step in EVALUATED:
            value = curve(planned, step)
            scores = np.full((len(PROMPTS), 2), value)
            values = {"reward": scores, "clip_score": scores, "shapes_oracle": 1 - scores}
            columns = {
                "step": np.full(scores.size, step),
                "prompt": [text for text in PROMPTS for _ in range(2)],
                "position": np.repeat(np.arange(len(PROMPTS)), 2),
                "sample": np.tile(np.arange(2), len(PROMPTS)),
                **{name: value.ravel() for name, value in values.items()},
            }
            record.samples("evaluations.parquet", step, columns)
            extra = {"quality": {"vendi": 2.0 + step, "frechet": {"mean": 3.0}}} if quality else {}
            rewards = {name: intervals.estimate(value).row() for name, value in values.items()}
            record.record(
                "evaluation",
                step,
                {"prompts": len(PROMPTS), "rewards": rewards, "images": scores.size, "seconds": 2.0, **extra},
            )
        if step in (0, STEPS):
            drawn = np.random.default_rng(step).integers(0, 256, (len(PROMPTS), 2, 8, 8, 3), np.uint8)
            record.write_images(step, dict(enumerate(drawn)))


def row(step, weights):
    """A training step, as the loop writes it."""
    columns = ("clip_fraction", "inactive_fraction", "ratio_std")
    return {
        "reward_mean": 0.5,
        "oldest_sample": 0,
        "group_deviation": 0.1,
        "clip_fraction": 0.25,
        "gradient_norm": 0.5,
        "per_timestep": {
            "timestep": [667, 334, 1],
            "native_weight": [0.5, 0.4, 3.2],
            "credit_weight": list(weights),
            "ratio_mean": [1.0, 1.0, 1.0],
            "gradient_share": [0.3, 0.3, 0.4],
            **{name: [0.0, 0.25, None] for name in columns},
        },
        "seconds": 10.0,
        "phase_seconds": {"sample_and_score": 6.0, "learn": 3.0, "publish": 0.5},
        "idle": {"samplers": 0.4, "scorers": 0.9, "learner": 0.7},
        "samples": 8 * step,
    }
