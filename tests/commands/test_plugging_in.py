"""Credit, advantage, objective, prompts and optimizer of a user's own: the page's examples, and what is refused."""

import dataclasses

import pytest
import torch

from pcpo_ray import config
from pcpo_ray.commands import opening, resuming, session
from pcpo_ray.config import files
from pcpo_ray.errors import ConfigError, CreditError, PcpoError, PromptError, RunError, TrainingError
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import inputs, own_advantage
from pcpo_ray.workers.learner import own_objective
from tests.support import running, small
from tests.support.plugged import EXAMPLES, OVERRIDES, SMALL, all_own


def with_override(path, override, **changes):
    key, _, value = override.partition("=")
    return small.run(path, **{key.replace(".", "__"): value}, **changes)


def test_the_page_shows_a_module_and_a_command_for_each_part():
    assert sorted(EXAMPLES) == ["my_advantage", "my_credit", "my_objective", "my_optimizer", "my_prompts"]
    assert all(len([line for line in code.splitlines() if line.strip()]) <= 16 for code in EXAMPLES.values())
    assert len(OVERRIDES) == 7 and {one.partition("=")[0].removesuffix(".kind") for one in OVERRIDES} == {
        *("credit", "advantage", "objective", "prompts", "optimizer")
    }


@pytest.mark.parametrize("override", OVERRIDES)
def test_each_command_of_the_page_passes_the_checks(here, small_sd, override):
    session.check(with_override(small_sd, override))


def test_the_examples_train_and_a_resumed_run_has_the_same_bits(here, small_sd):
    whole = all_own(small_sd)
    recorder = running.go(whole, here / "whole")
    first, second = [row for row in recorder.metrics() if row["kind"] == "train"]
    assert first["moved_fraction"] > 0 and first["first_log_ratio"] == 0 and first["clip_fraction"] == 0
    assert 0 < second["learning_rate"] <= 1e-3 and first["learning_rate"] == 5e-4
    weights = first["per_timestep"]["credit_weight"]
    assert weights == sorted(weights) and weights[1] == pytest.approx(2 * weights[0])

    # the same again, cut off after its first step
    running.go(all_own(small_sd), here / "cut")
    checkpoints.delete(checkpoints.folder_for(here / "cut", 2))
    running.go(all_own(small_sd), here / "cut", found=1)
    assert running.same(running.parameters(here / "whole", 2), running.parameters(here / "cut", 2))


WRONG = {
    "credit=my_credit:Lat": (CreditError, ["my_credit:Lat", "did you mean 'Late'?"]),
    "credit=my_credits:Late": (CreditError, ["did you mean 'my_credit'?", "package.module:name"]),
    "credit=mine:Bare": (CreditError, ["without a method weights", "weights(self, schedule, steps, trained)"]),
    "credit=mine:none": (CreditError, ["expected a class", "one finite weight for each trained step"]),
    "credit=mine:negative": (CreditError, ["credit.kind=mine:negative", "at least 0"]),
    "credit=mine:too_few": (CreditError, ["shape (1,) where (4,) was expected"]),
    "credit=mine:raising": (CreditError, ["mine:raising", "failed", "mine.py, line", "nothing to see"]),
    "credit={kind: 'my_credit:Late', options: {pwoer: 1}}": (CreditError, ["pwoer"]),
    "advantage=mine:infinite": (TrainingError, ["advantage 'mine:infinite'", "not finite"]),
    "advantage=mine:flat": (TrainingError, ["shape (6,) where (2, 3) was expected"]),
    "advantage=mine:Forgetful": (TrainingError, ["no plain data"]),
    "objective=mine:sloped_nowhere": (TrainingError, ["no slope at log-ratio 0"]),
    "objective=mine:total": (TrainingError, ["a tensor of shape () for log-ratios of shape (4,)"]),
    "objective=mine:number": (TrainingError, ["returned 1.0"]),
    "prompts=mine:none_at_all": (PromptError, ["mine:none_at_all holds no prompts"]),
    "prompts=mine:one_text": (PromptError, ["returned one text, 'a cat'"]),
    "prompts=mine:numbers": (PromptError, ["returned 3 at place 0"]),
    "prompts=mine:Changing": (PromptError, ["returned 8 prompts, then 8", "differ from place 0"]),
    "optimizer.kind=mine:Bare": (TrainingError, ["mine:Bare", "derived from torch.optim.Optimizer"]),
    "optimizer.kind=mine:Forgets": (TrainingError, ["does not continue from its `state`"]),
    "optimizer.kind=mine:Still": (TrainingError, ["leaves the weights as they are"]),
    "optimizer.kind=mine:Alone": (TrainingError, ["mine:Alone", "step", "takes 1 positional argument"]),
    "optimizer.kind=torch.optim:LBFGS": (TrainingError, ["torch.optim:LBFGS", "failed"]),
    "optimizer={kind: 'torch.optim:SGD', options: {nesterov: true}}": (TrainingError, ["cannot be built", "momentum"]),
    "optimizer={kind: 'torch.optim:SGD', options: {monentum: 1}}": (TrainingError, ["monentum", "parameters, lr="]),
    "optimizer={schedule: linear, schedule_options: {num_cycles: 2}}": (ConfigError, ["linear", "num_cycles"]),
    "optimizer={schedule: cosine_with_min_lr}": (ConfigError, ["cosine_with_min_lr", "min_lr"]),
}

MINE = '''
import torch

class Bare:
    pass

def none():
    return []

def negative(schedule, steps, trained):
    return [-1.0] + [1.0] * (len(trained) - 1)

def too_few(schedule, steps, trained):
    return [1.0]

def raising(schedule, steps, trained):
    raise ValueError("nothing to see")

def infinite(scores, prompts):
    return scores + float("inf")

def flat(scores, prompts):
    return scores.flatten()

class Forgetful:
    def advantages(self, scores, prompts):
        return scores
    def state(self):
        return {"seen": {1, 2}}
    def restore(self, state):
        pass

def sloped_nowhere(log_ratio, advantage, weight, clip_range):
    return -advantage * log_ratio ** 2

def total(log_ratio, advantage, weight, clip_range):
    return -(advantage * log_ratio).sum()

def number(log_ratio, advantage, weight, clip_range):
    return 1.0

def none_at_all():
    return []

def one_text():
    return "a cat"

def numbers():
    return [3]

class Changing:
    calls = 0
    def prompts(self):
        Changing.calls += 1
        return [f"cat {Changing.calls} {place}" for place in range(8)]

class Forgets(torch.optim.Optimizer):
    """Its momentum is where no checkpoint finds it."""
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.steps = 0
    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"] * self.steps)

class Alone(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
    def step(self):
        pass

class Still(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
    def step(self, closure=None):
        pass
'''


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_refused_before_a_model_is_loaded(here, small_sd, hollow, override):
    (here / "mine.py").write_text(MINE)
    kind, words = WRONG[override]
    with pytest.raises(PcpoError) as caught:
        session.check(with_override(hollow.parent / "small-sd", override, **SMALL))
    assert isinstance(caught.value, kind) and all(word in str(caught.value) for word in words), caught.value


def test_an_advantage_that_remembers_is_kept_in_checkpoints(here, small_sd):
    (here / "mine.py").write_text(
        "class Counting:\n"
        "    seen = 0\n"
        "    def advantages(self, scores, prompts):\n"
        "        self.seen += len(prompts)\n"
        "        return scores * 0 + self.seen\n"
        "    def state(self):\n"
        "        return {'seen': self.seen}\n"
        "    def restore(self, state):\n"
        "        self.seen = state['seen']\n"
    )
    settings = config.CustomAdvantage(kind="mine:Counting")
    one, other = own_advantage.OwnAdvantage(settings), own_advantage.OwnAdvantage(settings)
    scores = torch.zeros(2, 3, dtype=torch.float64)
    one.normalise(["a", "b"], scores)
    other.restore(one.state())
    assert one.state() == {"seen": 2}
    assert torch.equal(other.normalise(["a", "b"], scores), torch.full((2, 3), 4.0, dtype=torch.float64))


def test_an_objectives_slope_and_its_idle_pairs_are_those_of_its_formula(here):
    (here / "mine.py").write_text(
        "import torch\n"
        "def hinge(log_ratio, advantage, weight, clip_range):\n"
        "    return torch.relu(clip_range * advantage.abs() - advantage * log_ratio)\n"
    )
    from pcpo_ray.algorithm import diagnostics

    own = own_objective.OwnObjective(config.CustomObjective(kind="mine:hinge"))
    drawn = [torch.randn(8, 5, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    ratio, advantage = 0.02 * drawn[0][:, 0], drawn[1][:, 0]
    clip = torch.full((8,), 0.01)
    loss = own.loss(torch.ones(8), clip)
    kinds = (loss, "log_hinge")
    stopped = [diagnostics.inactive(ratio, advantage, clip_range=clip, objective=kind) for kind in kinds]
    assert torch.equal(*stopped)
    norms = [
        diagnostics.gradient_norm(
            drawn[0], drawn[1], drawn[2], ratio, advantage, weight=2.0, sign=1.0, stopped=stopped[0], objective=kind
        )
        for kind in kinds
    ]
    assert torch.allclose(*norms)


def test_changed_code_and_its_files_are_noticed_on_resume(here, small_sd):
    (here / "words.txt").write_text("a cat\na dog\n")
    (here / "mine.py").write_text("def texts(path):\n    return open(path).read().splitlines()\n")
    run = all_own(small_sd, prompts=f"{{kind: 'mine:texts', options: {{path: '{here}/words.txt'}}}}")
    keys = {"prompts.kind", "prompts.options.path", "credit.kind", "advantage.kind", "objective.kind", "optimizer.kind"}
    began = inputs.digests(inputs.of_run(run))
    assert keys <= began.keys()
    (here / "my_credit.py").write_text(EXAMPLES["my_credit"] + "\n# changed\n")
    found = list(inputs.changed(began, inputs.of_run(run), inputs.digests(inputs.of_run(run))))
    assert [key for key, _ in found] == ["credit.kind"] and inputs.is_own("credit.kind")


def test_other_steps_are_refused_where_the_schedule_ends_with_the_run(small_sd, tmp_path):
    run = small.run(small_sd, **SMALL, optimizer="{schedule: linear}")
    assert "steps" not in resuming.free_to_change(run)
    for schedule in ("constant", "inverse_sqrt"):
        assert "steps" in resuming.free_to_change(small.run(small_sd, optimizer=f"{{schedule: {schedule}}}"))
    from pcpo_ray.training.recorder import Recorder

    Recorder.create(LocalFolder(local=tmp_path / "run"), run).close()
    longer = dataclasses.replace(run, steps=9)
    with pytest.raises(RunError, match="steps 2 -> 9"):
        opening.resume(LocalFolder(local=tmp_path / "run"), longer, lambda line: None)


def test_a_config_with_parts_of_ones_own_survives_a_round_trip(small_sd, tmp_path):
    run = all_own(small_sd, optimizer="{kind: 'mine:Own', options: {betas: [0.9, 0.99]}}")
    (tmp_path / "config.yaml").write_text(files.dump(run))
    assert files.load(tmp_path / "config.yaml") == run
