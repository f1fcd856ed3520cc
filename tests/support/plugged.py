"""The parts of docs/plugging_in.md: its examples, its commands, and a run in which every part is one of them."""

import re
import shlex

from tests.support import ROOT, small

PAGE = (ROOT / "docs" / "plugging_in.md").read_text(encoding="utf-8")
EXAMPLES = {name: code for name, code in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL)}
OVERRIDES = [
    shlex.split(text)[0]
    for text in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
    if re.match(r"'?(credit|advantage|objective|prompts|optimizer)(\.kind)?=\S*(\{|\w+:)", text)
]
SMALL = {"rollout__prompts": 2, "rollout__images": 3, "evaluation__count": 1, "evaluation__every": 9, "steps": 2}


def all_own(path, **changes):
    """A run in which every part is one of the page's examples."""
    found = {"credit": "my_credit:Late", "objective": "{kind: 'my_objective:Soft', clip_range: 0.01}"}
    found |= {"advantage": "my_advantage:ranks", "prompts": "my_prompts:scenes"}
    found |= {"optimizer": "{kind: 'my_optimizer:SignSGD', learning_rate: 1e-3, schedule: cosine, warmup: 1}"}
    return small.run(path, **{**SMALL, **found, **changes})
