"""8-bit weights of a network's linear layers (model.quantization), by torchao: whole numbers, and a scale a row."""

import torch
from torch import Tensor, nn

from pcpo_ray.config import Model
from pcpo_ray.errors import ModelError
from pcpo_ray.models import finite


def check(model: Model) -> None:
    """Raise ModelError where 8-bit weights are asked for and torchao cannot be imported."""
    if model.quantization is None:
        return
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"model.quantization is {model.quantization}, and torchao cannot be imported here ({error}); "
            "pip install 'pcpo_ray[int8]' wherever the model is loaded, or set model.quantization=null"
        ) from None


def quantise(network: nn.Module, device: torch.device, source: str, dtype: str) -> None:
    """Quantise the weights of all linear layers in place, one layer after the other on `device`.

    So the device never holds more than one of them unquantised. Raises ModelError for weights that are not finite.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    settings = Int8WeightOnlyConfig(set_inductor_config=False)  # it would change how all else is compiled
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            finite.check_weights(layer.to(device), source, dtype, prefix=name)
            quantize_(layer, settings)
            layer.register_forward_pre_hook(follow_autocast)


def follow_autocast(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Cast a linear layer's input as autocast does, which does not see that torchao's tensors multiply."""
    device = inputs[0].device.type
    return inputs[0].to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else inputs[0]
