"""Master weights: float32 copies of the trained weights, which the optimizer steps whatever the network's dtype.

An optimizer step of 1e-5 is below half of bfloat16's spacing for every weight above 0.005 and would be rounded away.
In float32 it counts, and the network gets the rounded sum of all steps (Micikevicius et al. 2018, arXiv 1710.03740,
section 3.1).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Masters:
    """The float32 weights behind a network's trained `parameters`, by the same names.

    A float32 parameter is its own master. For others, gradients move to the master at the end of each backward pass,
    and are summed in float32 over passes.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.network = dict(parameters)
        self.values = {name: _master_of(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the masters' values to the network, rounded to its own dtype."""
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
