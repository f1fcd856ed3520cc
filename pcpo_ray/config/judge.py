"""The reward of a vision-language model that is asked over HTTP."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pcpo_ray.config.base import (
    Count,
    Label,
    NameOrPath,
    NonNegative,
    Number,
    Seconds,
    Unit,
    Url,
    VariableName,
    check_server,
    config,
)
from pcpo_ray.config.shipped import Ranks, Scale, Scales, ShippedReward


@config
class Judge(ShippedReward):
    """A vision-language model behind an OpenAI-compatible address (rewards/judge.py): vLLM, SGLang, hosted ones."""

    network = "none"
    scales: ClassVar[Scales] = {
        "judge": Scale("0 to 1", "how good the image is for the prompt, to a vision-language model"),
    }

    kind: Literal["judge"]
    url: Url
    """The server's address, with /v1 where it has one."""
    model: str
    """The model's name on the server."""
    mode: Literal["yes_no", "score", "pairwise"] = "yes_no"
    """The probability of yes, a number in the answer, or the fraction of comparisons within the group that were won."""
    template: NameOrPath | None = None
    """The question: question, checklist, unified_reward_2, better, or a YAML file of yours; null: the mode's own."""
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    label: Label = "judge"
    """The name of its scores."""
    key: VariableName | None = None
    """The environment variable that holds the server's key, set where scorers run; null: none."""
    rounds: Count | None = None
    """With pairwise: rounds of N comparisons at random in a group of N images; null: every pair is compared."""
    concurrency: Count = 16
    """Questions that one scorer asks at a time."""
    timeout: Seconds = 120.0
    """The longest that an answer may take."""
    patience: Annotated[NonNegative, Unit("seconds")] = 300.0
    """The longest that the server may be away or busy."""

    def __post_init__(self) -> None:
        check_server(self.url, "key")
        if self.rounds is not None and self.mode != "pairwise":
            raise ValueError(f"rounds is {self.rounds} with mode {self.mode}; it is for pairwise, leave it out")

    @property
    def scorer(self) -> str:  # type: ignore[override]
        """The class that scores: pairwise compares a group's images, the others judge single ones."""
        return f"pcpo_ray.rewards.judge:{'PairwiseJudge' if self.compares_images else 'Judge'}"

    @property
    def compares_images(self) -> bool:
        """True for comparisons within the group."""
        return self.mode == "pairwise"

    @property
    def ranks(self) -> Ranks:
        """Images of their own prompts, where it judges single ones."""
        return "none" if self.compares_images else "own"

    @property
    def name(self) -> str:
        """The name of the scores."""
        return self.label

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The scorer's arguments; `rounds` is for comparisons only."""
        found = dict(super().arguments)
        if not self.compares_images:
            del found["rounds"]
        return found
