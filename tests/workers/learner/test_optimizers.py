"""The optimizer of each kind: its groups, its state in a checkpoint, and the memory that a plan counts."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from pcpo_ray import config
from pcpo_ray.errors import ConfigError, TrainingError
from pcpo_ray.workers.learner import optimizers
from tests.support import running, small

HAS_8BIT = importlib.util.find_spec("bitsandbytes") is not None


def weights():
    shapes = {"linear.weight": (80, 80), "linear.bias": (80,), "norm.weight": (80,)}
    drawing = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=drawing)) for name, shape in shapes.items()}


def stepped(optimizer, parameters, seed):
    drawing = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=drawing)
    optimizer.step()


def as_it_is(value, parameter):
    return value


def test_adamw_is_torchs_with_the_configs_settings_and_one_group():
    settings, parameters, others = config.Optimizer(beta1=0.8, weight_decay=0.1), weights(), weights()
    ours = optimizers.make(settings, parameters)
    theirs = torch.optim.AdamW(others.values(), lr=3e-4, betas=(0.8, 0.999), eps=1e-8, weight_decay=0.1)
    assert type(ours) is torch.optim.AdamW and len(ours.param_groups) == 1
    for seed in range(3):
        stepped(ours, parameters, seed)
        stepped(theirs, others, seed)
    assert all(torch.equal(parameters[name], others[name]) for name in others)
    assert set(optimizers.pack(ours, parameters, settings)) == {
        f"{name}/{key}" for name in parameters for key in ("step", "exp_avg", "exp_avg_sq")
    }


def test_norms_and_biases_may_be_left_out_of_weight_decay():
    parameters = weights()
    settings = config.Optimizer(decay_norms_and_biases=False, weight_decay=0.5, learning_rate=0.1)
    optimizer = optimizers.make(settings, parameters)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {name: torch.equal(parameters[name], before[name]) for name in parameters}
    assert kept == {"linear.weight": False, "linear.bias": True, "norm.weight": True}


KINDS = [
    {"kind": "adamw"},
    {"kind": "torch.optim:SGD", "options": {"momentum": 0.9}},
    {"kind": "torch.optim:Adafactor"},
    pytest.param({"kind": "adamw8bit"}, marks=pytest.mark.skipif(not HAS_8BIT, reason="bitsandbytes is not installed")),
]


@pytest.mark.parametrize("changes", KINDS)
def test_what_is_packed_continues_with_the_same_bits(changes, tmp_path):
    from safetensors.torch import load_file, save_file

    settings, parameters, others = config.Optimizer(**changes), weights(), weights()
    one, other = optimizers.make(settings, parameters), optimizers.make(settings, others)
    stepped(one, parameters, 0)
    stepped(one, parameters, 1)
    save_file(optimizers.pack(one, parameters, settings), tmp_path / "optimizer.safetensors")
    for name, parameter in others.items():
        parameter.data.copy_(parameters[name])
    optimizers.unpack(other, others, load_file(tmp_path / "optimizer.safetensors"), as_it_is)
    stepped(one, parameters, 2)
    stepped(other, others, 2)
    assert all(torch.equal(parameters[name], others[name]) for name in others)


@pytest.mark.parametrize("changes", [KINDS[0], KINDS[1], KINDS[3]])
def test_the_plan_counts_the_bytes_that_a_step_leaves(changes):
    settings, parameters = config.Optimizer(**changes), weights()
    optimizer = optimizers.make(settings, parameters)
    stepped(optimizer, parameters, 0)
    packed = optimizers.pack(optimizer, parameters, settings)
    kept = sum(tensor.nbytes for name, tensor in packed.items() if name != optimizers.PLAIN and "qmap" not in name)
    assert optimizers.state_bytes(settings, [p.numel() for p in parameters.values()]) == kept


def test_eight_bit_moments_take_about_a_quarter():
    sizes = [1 << 20]
    adamw, small_ones = (optimizers.state_bytes(config.Optimizer(kind=kind), sizes) for kind in ("adamw", "adamw8bit"))
    assert 0.25 < small_ones / adamw < 0.26


def test_a_package_that_is_missing_is_named_with_its_cure(monkeypatch, small_sd):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(TrainingError, match=r"pip install bitsandbytes wherever the learner runs, or set .*=adamw"):
        optimizers.check(small.run(small_sd, optimizer="{kind: adamw8bit}"))


@pytest.mark.skipif(not HAS_8BIT, reason="bitsandbytes is not installed")
def test_a_run_with_eight_bit_moments_resumes_with_the_same_bits(small_sd, tmp_path):
    from pcpo_ray.runs import checkpoints

    changes = {"optimizer": "{kind: adamw8bit, learning_rate: 1e-3}", "evaluation__every": 9, "evaluation__count": 1}
    run = small.run(small_sd, **changes, model__train="{kind: full}", rollout__prompts=1)
    running.go(run, tmp_path / "whole")
    running.go(run, tmp_path / "cut")
    checkpoints.delete(checkpoints.folder_for(tmp_path / "cut", 2))
    running.go(run, tmp_path / "cut", found=1)
    assert running.same(running.parameters(tmp_path / "whole", 2), running.parameters(tmp_path / "cut", 2))


def test_what_does_not_go_together_is_refused(small_sd):
    refused = {
        "{kind: adamw8bit}": ["optimizer.kind is adamw8bit", "fsdp2", "ddp"],
        "{decay_norms_and_biases: false}": ["decay_norms_and_biases is false", "model.train.kind=lora"],
        "{warmup: 2}": ["optimizer.warmup is 2 of 2 steps"],
        "{kind: adam8bit}": ["optimizer: kind is 'adam8bit'", "did you mean adamw8bit?"],
        "{kind: 'a:B', beta1: 0.5}": ["beta1 is AdamW's", "options"],
        "{options: {a: 1}}": ["options is {'a': 1} with kind adamw"],
        "{schedule_options: {num_cycles: 1}}": ["schedule constant"],
    }
    for text, words in refused.items():
        with pytest.raises(ConfigError) as caught:
            small.run(small_sd, optimizer=text, workers__learner="{ranks: 2, strategy: fsdp2}")
        assert all(word in str(caught.value) for word in words), caught.value


def test_an_optimizer_of_another_shape_of_state_is_no_good_in_shards(small_sd):
    run = small.run(small_sd, optimizer="{kind: 'torch.optim:Adafactor'}")
    optimizers.check(run)
    sharded = small.run(
        small_sd, optimizer="{kind: 'torch.optim:Adafactor'}", workers__learner="{ranks: 2, strategy: fsdp2}"
    )
    with pytest.raises(TrainingError, match=r"keeps .*row_var.* in another shape .*strategy=ddp"):
        optimizers.check(sharded)
