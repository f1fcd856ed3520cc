"""Attention maps: how image tokens attend to the prompt's tokens, read while a network predicts.

A network's own attention is computed as ever; the maps are computed beside it, from the same queries and keys. Shapes:
B rows of a pass, H heads, Q image tokens, P tokens of the prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from pcpo_ray.config.model import AttentionKind
from pcpo_ray.errors import ModelError


class AttentionMaps(AbstractContextManager["AttentionMaps"]):
    """Reads the maps of all layers that attend to the prompt while inside.

    `kind` says where a layer has the prompt's tokens: `cross` if they are all its keys, else before or after those of
    the image, of which it then is the attention over both.
    """

    def __init__(self, network: nn.Module, kind: AttentionKind) -> None:
        self.network = network
        self.kind = kind
        self.tokens: tuple[int, int] | None = None
        """Tokens of image and prompt in the layer that is computed now; None outside of such layers."""
        self.found: list[Float[Tensor, "B Q P"]] = []
        self.open = ExitStack()

    def __enter__(self) -> "AttentionMaps":
        for module in self.network.modules():
            if hasattr(module, "to_q") and hasattr(module, "to_k"):
                for hook in (
                    module.register_forward_pre_hook(self._begin, with_kwargs=True),
                    module.register_forward_hook(self._end),
                ):
                    self.open.callback(hook.remove)
        self.open.enter_context(_Reading(self._read))
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def take(self, rows: int) -> list[Float[Tensor, "B Q P"]]:
        """Return the maps of each layer since the last call, for the last `rows` rows: guidance's others come first.

        Raises ModelError if no layer was read.
        """
        found, self.found = self.found, []
        if not found:
            raise ModelError(
                f"no layer of {type(self.network).__name__} attends to the prompt where credit.kind=attention looks "
                "for it; set another credit.kind"
            )
        return [one[-rows:] for one in found]

    def _begin(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        prompt = kwargs.get("encoder_hidden_states")
        image = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.tokens = None if prompt is None else (image.shape[1], prompt.shape[1])

    def _end(self, *_: object) -> None:
        self.tokens = None

    def _read(
        self, query: Float[Tensor, "B H _ d"], key: Float[Tensor, "B H _ d"], mask: Tensor | None, scale: float | None
    ) -> None:
        if self.tokens is None:
            return
        image, prompt = self.tokens
        queries, keys = (slice(0, image), slice(0, prompt))
        if self.kind == "text_first":
            queries = slice(prompt, prompt + image)
        elif self.kind == "text_last":
            keys = slice(image, image + prompt)
        expected = (image, prompt) if self.kind == "cross" else (image + prompt, image + prompt)
        if (query.shape[2], key.shape[2]) != expected:
            raise ModelError(
                f"a layer of {type(self.network).__name__} has {query.shape[2]} queries and {key.shape[2]} keys; "
                f"credit.kind=attention expected {expected[0]} and {expected[1]}, of {image} tokens of the image and "
                f"{prompt} of the prompt: set another credit.kind"
            )
        self.found.append(_mean_over_heads(query, key, mask, scale, queries, keys))


class _Reading(TorchFunctionMode):
    """Shows queries and keys of every attention to `read`, and leaves its result as it is."""

    def __init__(self, read: Callable[..., None]) -> None:
        super().__init__()
        self.read = read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            named = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
            self.read(named["query"], named["key"], named.get("attn_mask"), named.get("scale"))
        return func(*args, **kwargs)


@torch.no_grad()
def _mean_over_heads(
    query: Float[Tensor, "B H _ d"],
    key: Float[Tensor, "B H _ d"],
    mask: Tensor | None,
    scale: float | None,
    queries: slice,
    keys: slice,
) -> Float[Tensor, "B Q P"]:
    """Compute the attention of `queries` to all keys, in mean over heads, and return its part of `keys`.

    One head at a time is in memory.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads = query.shape[1]
    total = torch.zeros((), device=query.device)
    for head in range(heads):
        logits = scale * (query[:, head, queries].float() @ key[:, head].float().transpose(1, 2))
        if mask is not None:
            own = mask.expand(len(query), heads, query.shape[2], key.shape[2])[:, head, queries]
            logits = logits.masked_fill(~own, -torch.inf) if own.dtype is torch.bool else logits + own.float()
        total = total + logits.softmax(2)[:, :, keys] / heads
    return total
