"""Linear layers that take and compute what torchao's 8-bit ones do, so that planning does not need torchao."""

import torch
from torch import Tensor, nn

from pcpo_ray.models.int8 import follow_autocast


class Int8Linear(nn.Linear):
    """A linear layer with 8-bit weights; its `weight` is empty, and tells the dtype in which others see it."""

    numbers: Tensor
    scale: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]) @ self.numbers.t().to(inputs.dtype)
        outputs = (rows * self.scale.to(rows.dtype).flatten()).reshape(*inputs.shape[:-1], self.out_features)
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(inputs.dtype)


def quantise(network: nn.Module) -> None:
    """Give every frozen linear layer of a network 8-bit weights, in place."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            layer.__class__ = Int8Linear
            rows = layer.out_features
            layer.register_buffer("numbers", torch.empty(rows, layer.in_features, dtype=torch.int8))
            layer.register_buffer("scale", torch.empty(rows, 1))
            layer.register_buffer("zero_point", torch.empty(rows, 1, dtype=torch.int8))
            layer.register_forward_pre_hook(follow_autocast)
            layer.weight = nn.Parameter(torch.empty(0, dtype=layer.weight.dtype), requires_grad=False)
