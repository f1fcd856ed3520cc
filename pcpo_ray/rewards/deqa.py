"""DeQA-Score (arXiv 2501.11561), a measure of image quality, for `serve.py` in an environment of its own.

    pip install torch torchvision transformers==4.36.1 "numpy<2" sentencepiece protobuf icecream fastapi uvicorn
    python serve.py deqa:Scorer --option model=DeQA-Score-Mix3

Scores are 1..5, whatever the prompt; others divide them by 5. The folder of zhiyuanyou/DeQA-Score-Mix3 on the hub holds
code, which runs here: read it before. This file needs only those packages and Pillow.
"""

from collections.abc import Sequence

import numpy as np


class Scorer:
    """DeQA-Score from `model`, a copy of the hub's folder or its id."""

    def __init__(self, model: str, device: str = "cuda") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            model,
            trust_remote_code=True,
            attn_implementation="eager",
            torch_dtype=torch.float32 if device == "cpu" else torch.float16,
        ).to(device)

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> list[float]:
        import torch
        from PIL import Image

        with torch.no_grad():
            return [float(self.model.score([Image.fromarray(image)])[0]) for image in images]
