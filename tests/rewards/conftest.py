"""Fixtures of the rewards' tests."""

import threading
from functools import partial
from http.server import ThreadingHTTPServer

import pytest
import torch

from pcpo_ray.rewards import serve


@pytest.fixture(scope="module")
def clip_transformers(tmp_path_factory):
    """A small CLIPModel with its processor, as PickScore_v1 and OpenAI's CLIP lie on the hub."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import clip_tokenizer

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(WORLD)
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
            vision_config={**sizes, "image_size": 32, "patch_size": 8},
            projection_dim=12,
        )
    )
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def served():
    """Serves an application of serve.py, or a handler of http.server; gives its address."""
    ends = []

    def start(answering, port=0):
        listening = serve.listening("127.0.0.1", port)
        if isinstance(answering, type):
            plain = ThreadingHTTPServer(listening.getsockname(), answering, bind_and_activate=False)
            plain.socket, plain.daemon_threads = listening, True
            run = plain.serve_forever
            ends.append(plain.shutdown)
        else:
            server = serve.server(answering)
            run = partial(server.run, [listening])
            ends.append(partial(setattr, server, "should_exit", True))
            ends.append(partial(setattr, server, "force_exit", True))
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        ends.extend((thread.join, listening.close))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for end in ends:
        end()
