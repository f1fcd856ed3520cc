"""Master weights: float32 copies of what is trained, which the optimizer steps, whatever dtype the network computes in.

An optimizer step of 1e-5 is below half of bfloat16's spacing for every weight above 0.005 and would be rounded away.
Stepped in float32, it counts, and the network gets the rounded sum of all steps (Micikevicius et al. 2018, arXiv
1710.03740, section 3.1).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Masters:
    """The float32 weights behind a network's trained `parameters`, by the same names.

    A parameter that is float32 is its own master. For any other, gradients are taken over as soon as a backward pass
    has added them up, and are summed in float32 from one pass to the next.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.network = dict(parameters)
        self.values = {name: _master_of(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the network the masters' values, rounded to its own dtype."""
        for name, parameter in self.network.items():
            if parameter is not self.values[name]:
                parameter.copy_(self.values[name])


def _master_of(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype is torch.float32:
        return parameter
    master = nn.Parameter(parameter.detach().float())

    def take_over(trained: Tensor) -> None:
        assert trained.grad is not None
        gradient, trained.grad = trained.grad, None
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)

    parameter.register_post_accumulate_grad_hook(take_over)
    return master
