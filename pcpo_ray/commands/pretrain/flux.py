"""The flow model of a world: a small FLUX.1.

Both text encoders first learn to tell what a caption says, which takes a minute, and are then frozen; the transformer
is trained on what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from pcpo_ray.commands.pretrain import latents, vae
from pcpo_ray.commands.pretrain.loop import RunningMean, optimise
from pcpo_ray.commands.pretrain.measure import saving
from pcpo_ray.commands.pretrain.sd import DROPPED, WIDTH, text_encoder
from pcpo_ray.commands.pretrain.tokenizers import LENGTH, clip_tokenizer, t5_tokenizer
from pcpo_ray.commands.pretrain.world import World

BATCH = 64
READING_BATCH = 256
FIRST_LETTER = 4  # the place of a spelled word's first token in T5: after "the", "word", a space and the quote
RATE = 3e-3
TIME_SPREAD = 1.2  # standard deviation of the logits of the times: where the things take shape is in the middle
SHIFT = 1.5  # FLUX's own rule (a larger shift for more tokens) gives about this for 16 tokens


def build(world: World, out: Path) -> FluxPipeline:
    """The untrained pipeline around the trained VAE of `out`."""
    tokenizer, tokenizer_2 = clip_tokenizer(world), t5_tokenizer(world)
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
        in_channels=4 * world.latent_channels,
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
        vae=vae.load(world, out),
        text_encoder=text_encoder(len(tokenizer), layers=1),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


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


def learn_to_read(world: World, encoders: TextEncoders, rng: np.random.Generator, steps: int) -> None:
    """Train both encoders to answer `told`, each through linear layers that are thrown away afterwards.

    FLUX tells its text tokens no places. Where captions spell words, each letter's token in T5 is asked which letter it
    is, in which place and of how many; the mean of T5's tokens is asked the rest.
    """
    classes, letters = list(world.classes), world.letters
    asked = classes[letters:] if world.spelled else classes
    of_token = (classes[0], letters, letters + 1) if world.spelled else ()
    pooled_head = nn.Linear(WIDTH, sum(classes))
    head = nn.Linear(WIDTH if world.spelled else LENGTH * WIDTH, sum(asked))
    token_head = nn.Linear(WIDTH, sum(of_token)) if world.spelled else nn.Identity()

    def misread(logits: Float[Tensor, "B Q"], answers: Int[Tensor, "B A"], asked: Sequence[int]) -> Tensor:
        questions = zip(logits.split(list(asked), dim=1), answers.T, strict=True)
        return sum((nn.functional.cross_entropy(of, answer) for of, answer in questions), torch.zeros(()))

    def loss_of() -> Tensor:
        texts = world.sample(rng, READING_BATCH, "train")
        answers = torch.tensor([world.told(text) for text in texts])
        pooled, embeds = encoders(texts)
        loss = misread(pooled_head(pooled), answers, classes)
        if not world.spelled:
            return loss + misread(head(embeds.flatten(1)), answers, asked)
        there = answers[:, :letters] < classes[0] - 1
        places = torch.arange(letters).expand(there.shape)
        said = torch.stack([answers[:, :letters], places, there.sum(1, keepdim=True).expand(there.shape)], dim=2)
        tokens = embeds[:, FIRST_LETTER : FIRST_LETTER + letters]
        loss = loss + misread(token_head(tokens[there]), said[there], of_token)
        return loss + misread(head(embeds.mean(dim=1)), answers[:, letters:], asked)

    parts = nn.ModuleList([encoders, pooled_head, head, token_head])
    optimise(f"{world.name}-flux reading", parts, loss_of, steps=steps, rate=RATE)


def train(world: World, out: Path, seed: int, steps: int, images: int = latents.IMAGES, seen: int = 64) -> None:
    """Train the flow model and write it to `out`, now and then and at the end (measure.saving)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = latents.encode(world, out, seed, images)
    pipeline = build(world, out)
    transformer, encoders = pipeline.transformer, TextEncoders(pipeline)
    learn_to_read(world, encoders, rng, min(steps, world.reading_steps))
    encoders.requires_grad_(False).eval()
    transformer.train()
    mean = RunningMean(transformer)
    name = f"{world.name}-flux"
    height, width = world.latent_size
    image_ids = pipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
    text_ids = torch.zeros(LENGTH, 3)

    def loss_of() -> Tensor:
        images, texts = data.sample(rng, BATCH, dropped=DROPPED)
        clean = pipeline._pack_latents(images, BATCH, world.latent_channels, height, width)
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

    after_step = saving(world, "flux", pipeline, transformer, mean, out, steps=steps, seen=seen)
    # with AdamW alone positions were right in half of the images after 7,000 steps, with Muon in 95% after 500
    blocks = [transformer.transformer_blocks, transformer.single_transformer_blocks]
    optimise(name, transformer, loss_of, steps=steps, rate=RATE, muon=blocks, after_step=after_step)
