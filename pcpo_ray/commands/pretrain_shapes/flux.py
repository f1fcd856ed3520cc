"""shapes-flux: a small FLUX.1 of the embedded world.

Both text encoders first learn to tell what a caption says, which takes a minute, and are then frozen; the transformer
is trained on what they say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from pcpo_ray.commands.pretrain_shapes import latents, vae
from pcpo_ray.commands.pretrain_shapes.data import sample_captions
from pcpo_ray.commands.pretrain_shapes.loop import RunningMean, optimise
from pcpo_ray.commands.pretrain_shapes.measure import FLUX_SAMPLING, accuracy, summary
from pcpo_ray.commands.pretrain_shapes.sd import DROPPED, WIDTH, text_encoder
from pcpo_ray.commands.pretrain_shapes.tokenizers import LENGTH, clip_tokenizer, t5_tokenizer
from pcpo_ray.shapes.captions import COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES, parse

NAME = "shapes-flux"
BATCH = 64
STEPS = 6000
SAVE_EVERY = 500
READING_STEPS = 150
READING_BATCH = 256
RATE = 3e-3
TIME_SPREAD = 1.2  # standard deviation of the logits of the times: where the things take shape is in the middle
SHIFT = 1.5  # FLUX's own rule (a larger shift for more tokens) gives about this for 16 tokens
SIDE = 4  # tokens a side: 8 x 8 latents packed 2 x 2


def build(out: Path) -> FluxPipeline:
    """The untrained pipeline around the trained VAE of `out`."""
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=WIDTH,
            d_ff=2 * WIDTH,
            d_kv=32,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    transformer = FluxTransformer2DModel(
        in_channels=4 * vae.CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae.load(out),
        text_encoder=text_encoder(len(tokenizer), layers=1),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def told(text: str) -> list[int]:
    """Return a caption's facts, one class per question: colour, shape and size of either thing, position, relation.

    The class after the last means that the caption does not say.
    """
    caption = parse(text)
    asked: list[tuple[tuple[str, ...], str | None]] = []
    for thing in (*caption.things, None)[:2]:
        colour, shape, size = (None, None, None) if thing is None else (thing.colour, thing.shape, thing.size)
        asked += [(COLOURS, colour), (SHAPES, shape), (SIZES, size)]
    asked += [(POSITIONS, caption.position), (RELATIONS, caption.relation)]
    return [len(words) if said is None else words.index(said) for words, said in asked]


CLASSES = [len(words) + 1 for words in (COLOURS, SHAPES, SIZES, COLOURS, SHAPES, SIZES, POSITIONS, RELATIONS)]


class TextEncoders(nn.Module):
    """FLUX's two: CLIP, whose end token speaks for the whole caption, and T5, word by word."""

    def __init__(self, pipeline: FluxPipeline) -> None:
        super().__init__()
        self.clip, self.t5 = pipeline.text_encoder, pipeline.text_encoder_2
        self._tokenizers = pipeline.tokenizer, pipeline.tokenizer_2

    def forward(self, texts: list[str]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B L D"]]:
        """The pooled embedding and the words' embeddings of each text."""
        padded = {"padding": "max_length", "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        clip_ids, t5_ids = (tokenizer(texts, **padded).input_ids for tokenizer in self._tokenizers)
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids)[0]


def learn_to_read(encoders: TextEncoders, rng: np.random.Generator, steps: int) -> None:
    """Train both encoders to answer `told`, each through linear layers that are thrown away afterwards."""
    heads = nn.ModuleList([nn.Linear(WIDTH, sum(CLASSES)), nn.Linear(LENGTH * WIDTH, sum(CLASSES))])

    def loss_of() -> Tensor:
        texts = sample_captions(rng, READING_BATCH)
        answers = torch.tensor([told(text) for text in texts])
        loss = torch.zeros(())
        for head, embedding in zip(heads, encoders(texts), strict=True):
            for question, logits in enumerate(head(embedding.flatten(1)).split(CLASSES, dim=1)):
                loss = loss + nn.functional.cross_entropy(logits, answers[:, question])
        return loss

    optimise(f"{NAME} reading", nn.ModuleList([encoders, heads]), loss_of, steps=steps, rate=RATE)


def train(out: Path, seed: int, steps: int = STEPS, pictures: int = latents.PICTURES, measured: int = 64) -> None:
    """Train shapes-flux and write it to `out`, every SAVE_EVERY steps and at the end."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = latents.encode(out, seed, pictures)
    pipeline = build(out)
    transformer, encoders = pipeline.transformer, TextEncoders(pipeline)
    learn_to_read(encoders, rng, min(steps, READING_STEPS))
    encoders.requires_grad_(False).eval()
    transformer.train()
    mean = RunningMean(transformer)
    image_ids = pipeline._prepare_latent_image_ids(1, SIDE, SIDE, "cpu", torch.float32)
    text_ids = torch.zeros(LENGTH, 3)

    def loss_of() -> Tensor:
        pictures, texts = data.sample(rng, BATCH, dropped=DROPPED)
        clean = pipeline._pack_latents(pictures, BATCH, vae.CHANNELS, 2 * SIDE, 2 * SIDE)
        pooled, embeds = encoders(texts)
        times = torch.sigmoid(TIME_SPREAD * torch.randn(BATCH))
        times = SHIFT * times / (1 + (SHIFT - 1) * times)
        noise = torch.randn_like(clean)
        noisy = (1 - times[:, None, None]) * clean + times[:, None, None] * noise
        velocity = transformer(
            hidden_states=noisy,
            timestep=times,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=image_ids,
        ).sample
        loss: Tensor = nn.functional.mse_loss(velocity, noise - clean)
        return loss

    def after_step(step: int) -> None:
        mean.update()
        if step % SAVE_EVERY == 0 or step == steps:
            transformer.eval()
            with mean.applied():
                pipeline.save_pretrained(out / NAME)
                shares = accuracy(pipeline, measured, **FLUX_SAMPLING)
            transformer.train()
            print(f"{NAME} after {step} steps, right in {summary(shares)}", flush=True)

    # with AdamW alone positions were right in half of the pictures after 7,000 steps, with Muon in 95% after 500
    blocks = [transformer.transformer_blocks, transformer.single_transformer_blocks]
    optimise(NAME, transformer, loss_of, steps=steps, rate=RATE, muon=blocks, after_step=after_step)
