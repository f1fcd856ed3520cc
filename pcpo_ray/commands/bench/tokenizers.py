"""Tokenizers of language models, in the published classes, that split any text into its bytes."""

from typing import Any

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3's chat template, as far as a single request for an image goes."""

SIGHT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'][0]['text'] }}<|im_end|>\n"
    "{% endfor %}"
)
"""Qwen3-VL's chat template, as far as messages of one text go."""

INSTRUCTIONS = (
    "<s>{% for message in messages %}{% set text = message['content'][0]['text'] %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
)
"""Mistral Small's chat template, as far as a system message and a request go."""


def _bytes() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def qwen(length: int) -> Any:
    """Make a Qwen2Tokenizer, which Qwen3 and Qwen-VL have too, for texts of so many tokens."""
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    special += [f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad", "video_pad")]
    vocabulary = {token: index for index, token in enumerate([*_bytes(), *special])}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=[], model_max_length=length, chat_template=CHAT, additional_special_tokens=special[1:]
    )


def qwen3_vl(length: int) -> Any:
    """Make a Qwen3VLProcessor for texts of so many tokens."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=qwen(length),
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=SIGHT,
    )


def gemma(length: int) -> Any:
    """Make a GemmaTokenizer for texts of so many tokens."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=length, padding_side="right")


def pixtral(length: int) -> Any:
    """Make a PixtralProcessor, with which Mistral Small reads texts and images, for texts of so many tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PixtralImageProcessor, PixtralProcessor, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    images = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    vocabulary = {token: index for index, token in enumerate([*special, *images, *_bytes()])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        **{f"{name}_token": token for name, token in zip(("pad", "bos", "eos", "unk"), special, strict=False)},
        additional_special_tokens=[*special[4:], *images],
    )
    return PixtralProcessor(
        image_processor=PixtralImageProcessor(), tokenizer=made, patch_size=14, chat_template=INSTRUCTIONS
    )
