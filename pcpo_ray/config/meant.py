"""Words of other programs for keys and kinds of a config, so that an error can name what was meant by them."""

from collections.abc import Iterable, Mapping

from pcpo_ray.errors import nearest_name

KEYS: Mapping[str, tuple[str, ...]] = {
    "optimizer.learning_rate": ("lr", "rate", "base_lr", "max_lr"),
    "optimizer.warmup": ("warmup_steps", "lr_warmup_steps", "warmup_ratio"),
    "optimizer.schedule": ("scheduler_type", "lr_scheduler", "lr_scheduler_type", "lr_schedule"),
    "optimizer.max_gradient_norm": ("max_grad_norm", "grad_clip", "gradient_clip", "clip_grad_norm"),
    "optimizer.micro_batch": ("gradient_accumulation_steps", "gradient_accumulation", "grad_accum", "micro_batch_size"),
    "optimizer.mixed_precision": ("precision", "fp16", "bf16", "amp", "autocast"),
    "optimizer.average": ("ema", "use_ema", "ema_decay"),
    "optimizer.epochs": ("num_inner_epochs", "ppo_epochs", "num_epochs", "num_train_epochs"),
    "optimizer.weight_decay": ("wd", "decay", "adam_weight_decay"),
    "steps": ("max_steps", "num_steps", "max_train_steps", "total_steps", "iterations", "updates"),
    "rollout.prompts": ("batch_size", "train_batch_size", "prompts_per_step", "batches"),
    "rollout.images": ("num_generations", "group_size", "images_per_prompt", "num_images_per_prompt", "samples", "n"),
    "sampling.batch": ("sample_batch_size", "sampling_batch_size"),
    "sampling.steps": ("num_inference_steps", "inference_steps", "denoising_steps", "sample_steps"),
    "sampling.guidance_scale": ("guidance", "cfg", "cfg_scale"),
    "sampling.process": ("sampler", "scheduler", "noise_scheduler", "solver"),
    "sampling.height": ("resolution", "size", "image_size"),
    "model.path": ("pretrained_model_name_or_path", "pretrained_model", "model_name", "base_model", "checkpoint"),
    "model.single_file": ("safetensors", "ckpt", "checkpoint_file"),
    "model.train.rank": ("lora_rank", "lora_r", "r"),
    "model.train.alpha": ("lora_alpha",),
    "model.train.targets": ("target_modules", "lora_target_modules"),
    "model.train": ("use_lora", "lora", "full_finetuning"),
    "model.train.start": ("adapter", "lora_path", "resume_lora"),
    "objective.kl": ("beta", "kl_coef", "kl_coeff", "kl_weight", "kl_beta"),
    "objective.old_predictions": (
        "recompute_old_log_prob",
        "recompute_logprobs",
        "recompute_logprob",
        "decoupled_loss",
    ),
    "objective.correction": ("tis", "use_tis", "rollout_is", "importance_sampling", "behav_imp_weight_cap"),
    "sampling.compile": ("torch_compile", "compile_repeated_blocks"),
    "model.attention": ("attention_backend", "attn_implementation", "attn_backend"),
    "objective.clip_range": ("clip", "epsilon_clip", "clip_eps", "cliprange"),
    "rewards": ("reward_fn", "reward_model", "reward_function", "scorer", "reward_funcs"),
    "prompts": ("dataset", "data", "train_data", "prompt_file", "prompt", "dataset_name", "prompt_fn"),
    "checkpoints.every": ("save_steps", "save_every", "save_freq", "checkpointing_steps", "save_interval"),
    "checkpoints.keep": ("save_total_limit", "checkpoints_total_limit", "num_checkpoint_limit"),
    "evaluation.every": ("eval_every", "eval_steps", "eval_freq", "validation_steps", "eval_interval"),
    "trackers": ("report_to", "wandb", "tensorboard", "logger", "log_with", "tracker"),
    "name": ("run_name", "experiment_name", "exp_name"),
    "workers.samplers.workers": ("num_workers", "samplers"),
    "workers.learner.ranks": ("world_size", "nproc_per_node", "num_processes"),
    "--runs": ("runs", "output_dir", "logdir", "log_dir", "save_dir", "out"),
    "--resume": ("resume", "resume_from", "resume_from_checkpoint"),
    "--local": ("local",),
    "--log-level": ("log_level", "verbose", "verbosity"),
}
"""Words by the key, or the option of `pcpo-ray train`, that they mean here."""

KEY_OF = {word: key for key, words in KEYS.items() for word in words}

KINDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "credit": {
        "native": ("ddpo", "dppo", "grpo", "flow_grpo", "dancegrpo", "none", "off", "false"),
        "reweight (any model), interpolate (diffusion) or proportionate (flow), which are PCPO's": ("pcpo", "constant"),
    },
    "advantage": {"group": ("grpo", "flow_grpo", "normalized"), "prompt_history": ("ddpo", "per_prompt", "tracker")},
    "objective": {
        "clipped_ratio": ("ppo", "grpo", "ddpo", "clip", "clipped"),
        "log_hinge": ("pcpo", "hinge"),
    },
    "sampling.process": {
        "constant_noise": ("dancegrpo", "dance_grpo", "sde", "flow_sde"),
        "ratio_noise": ("flow_grpo", "flowgrpo"),
        "coefficients_preserving": ("cps", "flow_cps"),
    },
    "optimizer": {"adamw": ("adam",), "adamw8bit": ("adam8bit", "adamw_8bit", "8bit", "paged_adamw8bit")},
    "rewards": {
        "clip_score": ("clip", "clipscore"),
        "hps_v2.1": ("hps", "hpsv2", "hpsv21"),
        "ocr": ("text",),
        "{kind: ocr, score: exact, detect: false}": ("ocr_exact",),
        "{kind: ocr, score: ctc, detect: false}": ("ocr_ctc",),
    },
    "model": {
        "stable_diffusion": ("sd", "sd1", "sd14", "sd15", "sd1.5", "sd2", "sd21"),
        "sd3": ("sd35", "sd3.5", "sd35m"),
        "flux2_klein": ("klein",),
        "qwen_image": ("qwen",),
        "z_image": ("zimage",),
    },
    "model.dtype": {"float16": ("fp16", "half"), "bfloat16": ("bf16",)},
    "model.train": {"full": ("all", "finetune", "fft")},
    "prompts": {"file": ("txt", "csv", "list")},
}
"""Words by the kind that they mean in a mapping, or by the value of a key."""


def kind_meant(path: str, word: str, known: Iterable[str]) -> str:
    """Give ` (did you mean ...?)` for what a word means at the path of a mapping or key, or nothing.

    A place in a list is no part of the path.
    """
    place = ".".join(part for part in path.split(".") if not part.isdigit()).removeprefix("evaluation.")
    for kind, words in KINDS.get(place, {}).items():
        if word.lower() in words:
            return f" (did you mean {kind}?)"
    found = nearest_name(word, known)
    return f" (did you mean {found!r}?)" if found else ""


def own_meant(word: object) -> str:
    """Give ` (did you mean my_rewards:Redness?)` for a class of the user's own that is named with a dot, or nothing."""
    module, _, name = str(word).rpartition(".")
    dotted = bool(module) and all(part.isidentifier() for part in (*module.split("."), name))
    return f" (did you mean {module}:{name}?)" if dotted and name != "py" else ""


def as_own(word: object) -> str:
    """Say how a class of the user's own is named, to someone who has named a text that may be one; else nothing."""
    if isinstance(word, str) and (stem := word.removesuffix(".py")).isidentifier():
        path = f"my_module:{word}" if stem[0].isupper() else f"{stem}:MyClass"  # classes are capitalised, modules not
        return f"; name your own with its module, as in {path}"
    return ""
