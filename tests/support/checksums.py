"""The checksum of weights, computed apart from the code that sends them."""

import torch
import xxhash


def checksum(parameters):
    """Hash names, dtypes, shapes and bytes in the order of the names."""
    digest = xxhash.xxh3_128()
    for name in sorted(parameters):
        value = parameters[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
