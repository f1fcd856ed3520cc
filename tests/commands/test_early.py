"""Mistakes in a config's files and names are told before torch is loaded."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.unloaded import PROGRAM

MISTAKES = {
    "prompts=absent.txt": "no prompt file at ",
    "prompts=empty.txt": "empty.txt holds no prompts",
    "prompts=latin.txt": "latin.txt, line 1 cannot be read as UTF-8",
    "evaluation.prompts=absent.txt": "no prompt file at ",
    "model.path=./absent": "there is no such folder",
    "model.path=shapes-ds": "did you mean 'shapes-sd'?",
    "rewards={kind: aesthetic, head: h.pth, model: m}": "fetch it with: hf download camenduru/",
    "rewards=my_reward:Redness": "rewards.0.kind: got 'my_reward:Redness', and there is no module 'my_reward' in ",
    "advantage=mine.deep:one": "advantage.kind: got 'mine.deep:one', and there is no module 'mine' in ",
    "rewards=my_rewards.py:Redness": "'my_rewards.py:Redness', a file's name (did you mean my_rewards:Redness?)",
    "rewards=my_rewards:Rednes": "my_rewards.py has no 'Rednes' (did you mean 'Redness'?)",
    "credit=my_rewards:Late": "credit.kind: got 'my_rewards:Late', and ",
    "objective=my_rewards:slope": "objective.kind: got 'my_rewards:slope', and ",
    "prompts=broken:texts": "broken.py, line 1 is not Python: ",
    "optimizer.kind=my_rewards:Sgd": "optimizer.kind: got 'my_rewards:Sgd', and ",
    "model={kind: custom, path: shapes-sd, denoiser: 'my_rewards:Net', family: diffusion}": "model.denoiser: got ",
    "model.kind=sdxl": "model.kind=sdxl expects a StableDiffusionXLPipeline: set model.kind=stable_diffusion",
    "model.kind=fluxx": "did you mean 'flux'?",
    "model.train.start=absent": "absent is not there: nothing at that path",
    "model.train.start=lora/step-000002": "did you mean 'step-000001'?",
    "model.train.start=lora": "lora has none of pytorch_lora_weights.safetensors, ",
    "model.train.start=whole.safetensors": "has 1 weights that are no A, B or alpha of a LoRA ['conv.weight']",
    "model.train.start=cut.safetensors": "cut.safetensors cannot be read as a LoRA: ",
}


def train(folder, *words):
    program = PROGRAM.format(words=["train", "shapes_pcpo", "--local", *words])
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=60)


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_told_before_torch_is_loaded(tmp_path, override):
    (tmp_path / "my_rewards.py").write_text("import torch\n\nclass Redness(torch.nn.Module):\n    pass\n")
    (tmp_path / "broken.py").write_text("def texts(:\n")
    (tmp_path / "lora" / "step-000001").mkdir(parents=True)
    save_file({"conv.weight": np.zeros(2, np.float32)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-4])
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    done = train(tmp_path, override)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("error: ")
    assert MISTAKES[override] in done.stderr
    assert ("did you mean 'my_rewards'?" in done.stderr) == ("my_reward:" in override)


def test_what_is_missing_is_told_at_once_and_what_is_there_goes_on_to_load(tmp_path):
    both = train(tmp_path, "prompts=absent.txt", "model.path=./absent").stderr
    assert both.startswith("error: 2 wrong\n") and "no prompt file" in both and "no such folder" in both
    (tmp_path / "my_rewards.py").write_text("class Redness: ...\n")
    assert "came to load torch" in train(tmp_path, "rewards=my_rewards:Redness").stderr
