"""Changes that some pipelines make to the sum of guidance's two branches."""

from jaxtyping import Float
from torch import Tensor


def with_norm_of(conditional: Float[Tensor, "B ... D"], guided: Float[Tensor, "B ... D"]) -> Float[Tensor, "B ... D"]:
    """Give the guided prediction the norm of the conditional one, over the last axis."""
    rescaled: Tensor = guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
    return rescaled
