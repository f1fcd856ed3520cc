"""Beginning from a LoRA: each layer's update is what `pipe.load_lora_weights` gives, or the file is refused by name."""

import functools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcpo_ray import models
from pcpo_ray.commands import session
from pcpo_ray.config import Lora
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from pcpo_ray.models import lora
from tests.support import small

CPU = torch.device("cpu")
FILE = "pytorch_lora_weights.safetensors"
KINDS = ["small_sd", "small_sdxl", "small_sd3", "small_flux"]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
DOUBLE = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.to_v")
"""Of FLUX's double-stream block, of which kohya's scripts keep the three in one."""


def load(path, train="kind: lora, rank: 2, alpha: 2"):
    run = small.run(path, model__train=f"{{{train}}}")
    return models.load(run.model, run.sampling, seed=0, device=CPU)


class Pair:
    """A denoiser with our adapter, and another to which plain diffusers loads the same file."""

    def __init__(self, path, targets):
        self.targets = targets
        self.ours = load(path, f"kind: lora, rank: 2, alpha: 3, targets: [{', '.join(targets)}]")
        self.theirs = load(path, "kind: full")
        self.first = {name: p.detach().clone() for name, p in self.ours.trainable().items()}

    def layers(self):
        return {name.partition(".lora_")[0] for name in self.first}

    def matrices(self, ranks=(2,), dtype=torch.float32):
        """Random A and B of every layer, as (A, B) by layer."""
        found = {}
        for index, name in enumerate(sorted(self.layers())):
            weight = self.theirs.module.get_submodule(name).weight
            rank, drawn = ranks[index % len(ranks)], generator(index)
            found[name] = (
                torch.randn(rank, *weight.shape[1:], generator=drawn).to(dtype) * 0.3,
                torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=drawn).to(dtype) * 0.3,
            )
        return found

    def begin(self, source, rank=2):
        """Our adapter's updates by layer, begun from a file."""
        with torch.no_grad():
            for name, parameter in self.ours.trainable().items():
                parameter.copy_(self.first[name])
        config = Lora(rank=rank, alpha=3, targets=self.targets, start=str(source))
        lora.start(self.ours.pipeline, self.ours.part, config)
        return {name: self.ours.module.get_submodule(name).get_delta_weight("default") for name in self.layers()}

    def loaded(self, source):
        """Diffusers' updates by layer."""
        self.theirs.pipeline.load_lora_weights(source, adapter_name="file")
        try:
            return {
                name: self.theirs.module.get_submodule(name).get_delta_weight("file").float() for name in self.layers()
            }
        finally:
            self.theirs.pipeline.unload_lora_weights()


@pytest.fixture(scope="module")
def pair(request):
    @functools.cache
    def made(kind, targets=ATTENTION):
        return Pair(request.getfixturevalue(kind), targets)

    return made


def close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5, msg=name)
        assert one[name].abs().max() > 1e-3


def described(prefix, matrices, folder, **settings):
    """A file as diffusers writes it, with what PEFT's config says."""
    ranks = [a.shape[0] for a, _ in matrices.values()]
    said = {"r": ranks[0], "lora_alpha": ranks[0], "target_modules": [*matrices], "bias": "none", **settings}
    header = {"lora_adapter_metadata": json.dumps({f"{prefix}.{key}": value for key, value in said.items()})}
    return written(named(prefix, matrices), folder, header)


def named(prefix, matrices):
    return {
        f"{prefix}.{name}.lora_{letter}.weight": matrix
        for name, both in matrices.items()
        for letter, matrix in zip("AB", both, strict=True)
    }


def written(weights, folder, header=None):
    folder.mkdir(exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / FILE, metadata=header)
    return folder


def kohya(names, alphas):
    """Weights with the names of kohya's scripts: {name: (A, B)} and their alphas."""
    weights = {}
    for index, (name, (a, b)) in enumerate(names.items()):
        weights[f"{name}.lora_down.weight"], weights[f"{name}.lora_up.weight"] = a, b
        if alphas:
            weights[f"{name}.alpha"] = torch.tensor(alphas[index % len(alphas)])
    return weights


@pytest.mark.parametrize("kind", KINDS)
def test_rank_stabilised_and_uneven_scales_are_as_diffusers_has_them(kind, pair, tmp_path):
    both = pair(kind)
    part, matrices = both.ours.part, both.matrices()
    first = next(iter(matrices))
    for index, settings in enumerate(
        (
            {"use_rslora": True, "lora_alpha": 8},
            {"lora_alpha": 5},
            {"alpha_pattern": {"to_k": 7, f"^{first}": 0.5}, "modules_to_save": None},
            {},
        )
    ):
        folder = described(part, matrices, tmp_path / str(index), **settings)
        close(both.begin(folder), both.loaded(folder))
    both.begin(described(part, matrices, tmp_path / "0", use_rslora=True, lora_alpha=8))
    both.theirs.pipeline.load_lora_weights(tmp_path / "0", adapter_name="file")
    latents, times = torch.randn(2, *both.ours.latent_shape, generator=generator(1)), torch.tensor([500.0, 20.0])
    texts = {name: torch.cat([row, row]) for name, row in both.ours.fixed_text().items()}
    with torch.no_grad():
        ours, theirs = both.ours.predict(latents, times, texts), both.theirs.predict(latents, times, texts)
        both.theirs.pipeline.unload_lora_weights()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ours, both.theirs.predict(latents, times, texts), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_lesser_rank_fill_a_part_of_theirs(kind, pair, tmp_path):
    both = pair(kind)
    matrices = both.matrices(ranks=(2, 1))
    ranks = {f"^{name}": a.shape[0] for name, (a, _) in matrices.items()}
    folder = described(both.ours.part, matrices, tmp_path / "uneven", rank_pattern=ranks, use_rslora=True)
    close(both.begin(folder), both.loaded(folder))
    plain = written(named(both.ours.part, matrices), tmp_path / "plain")
    close(both.begin(plain), both.loaded(plain))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_taken_over_without_rounding(dtype, pair, tmp_path):
    both = pair("small_sd")
    matrices = both.matrices(dtype=dtype)
    begun = both.begin(written(named("unet", matrices), tmp_path / "half"))
    close(begun, {name: b.float() @ a.float() for name, (a, b) in matrices.items()})
    assert all(p.dtype == torch.float32 for p in both.ours.trainable().values())


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_alphas_beside_diffusers_names_of_flux_count(alpha, pair, tmp_path):
    both = pair("small_flux")
    matrices = both.matrices()
    alphas = {f"transformer.{name}.alpha": torch.tensor(alpha) for name in matrices}
    folder = written(named("transformer", matrices) | alphas, tmp_path / "alphas")
    close(both.begin(folder), both.loaded(folder))


@pytest.mark.parametrize("alphas", [(), (2.0,), (1.0,), (5.0,)])
def test_kohyas_names_and_alphas_of_stable_diffusion(alphas, pair, tmp_path):
    both = pair("small_sd")
    names = {f"lora_unet_{name.replace('.', '_')}": pair for name, pair in both.matrices().items()}
    folder = written(kohya(names, alphas), tmp_path / "kohya")
    close(both.begin(folder), both.loaded(folder))


def test_kohyas_convolutions_have_alphas_of_their_own(pair, tmp_path):
    both = pair("small_sd", ("conv1", "conv2", "time_emb_proj"))
    names = {f"lora_unet_{name.replace('.', '_')}": pair for name, pair in both.matrices().items()}
    folder = written(kohya(names, (1.0, 4.0, 2.0)), tmp_path / "kohya")
    close(both.begin(folder), both.loaded(folder))


SGM = {"down_blocks.1.attentions.0": "input_blocks_3_1", "mid_block.attentions.0": "middle_block_1"} | {
    f"up_blocks.0.attentions.{index}": f"output_blocks_{index}_1" for index in range(2)
}
"""Where SDXL's authors have what diffusers has elsewhere, of small.sdxl."""


@pytest.mark.parametrize("names", ["diffusers", "authors"])
def test_kohyas_names_and_alphas_of_sdxl(names, pair, tmp_path):
    both = pair("small_sdxl")

    def kohyas(name):
        if names == "authors":
            block = next(block for block in SGM if name.startswith(f"{block}."))
            name = name.replace(block, SGM[block])
        return f"lora_unet_{name.replace('.', '_')}"

    weights = kohya({kohyas(name): pair for name, pair in both.matrices().items()}, (4.0,))
    folder = written(weights, tmp_path / "kohya")
    close(both.begin(folder), both.loaded(folder))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 16.0])
def test_kohyas_flux_has_three_layers_in_one_and_its_alpha(alpha, pair, tmp_path):
    both = pair("small_flux", DOUBLE)
    a = torch.randn(2, 16, generator=generator(0))
    b = torch.randn(48, 2, generator=generator(1))
    weights = kohya({"lora_unet_double_blocks_0_img_attn_qkv": (a, b)}, (alpha,))
    folder = written(weights, tmp_path / "kohya")
    begun = both.begin(folder)
    close(begun, both.loaded(folder))
    close(begun, {name: b[16 * i : 16 * (i + 1)] @ a * alpha / 2 for i, name in enumerate(DOUBLE)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_pefts_own_folder_is_as_peft_has_it(kind, suffix, pair, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    both = pair(kind)
    network = both.theirs.module
    ranks = {"to_k": 1}
    config = LoraConfig(r=2, lora_alpha=6, target_modules=list(ATTENTION), use_rslora=True, rank_pattern=ranks)
    wrapped = get_peft_model(network, config)
    for index, parameter in enumerate(p for p in wrapped.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, generator=generator(index))
    wrapped.save_pretrained(tmp_path / "peft", safe_serialization=suffix == "safetensors")
    wrapped.unload()
    read = PeftModel.from_pretrained(network, tmp_path / "peft")
    expected = {name: network.get_submodule(name).get_delta_weight("default").detach() for name in both.layers()}
    read.unload()
    assert (tmp_path / "peft" / f"adapter_model.{suffix}").is_file()
    close(both.begin(tmp_path / "peft"), expected)
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"no adapter_config\.json beside it"):
        both.begin(tmp_path / "peft")


def test_what_save_lora_adapter_writes_is_read_without_a_prefix(pair, tmp_path):
    both = pair("small_sd3")
    folder = described("transformer", both.matrices(), tmp_path / "prefixed", lora_alpha=7)
    both.theirs.pipeline.load_lora_weights(folder, adapter_name="file")
    both.theirs.module.save_lora_adapter(tmp_path / "bare", adapter_name="file")
    both.theirs.pipeline.unload_lora_weights()
    close(both.begin(tmp_path / "bare"), both.loaded(folder))


def test_the_names_of_older_diffusers_are_understood(pair, tmp_path):
    both = pair("small_sd")

    def older(name):
        block, _, layer = name.rpartition(".to_")
        return f"{block}.processor.to_{layer.removesuffix('.0')}_lora"

    weights = {
        f"unet.{older(name)}.{which}.weight": matrix
        for name, ab in both.matrices().items()
        for which, matrix in zip(("down", "up"), ab, strict=True)
    }
    folder = written(weights, tmp_path / "older")
    close(both.begin(folder), both.loaded(folder))


def drawn(folder, prefix):
    """What a reader that knows no metadata draws: B @ A * alpha / rank, alpha being the rank where no key says it."""
    weights, found = load_file(folder / FILE), {}
    for name in (name for name in weights if name.endswith(".lora_A.weight")):
        layer = name.removesuffix(".lora_A.weight")
        a, b = weights[name], weights[f"{layer}.lora_B.weight"]
        found[layer.removeprefix(f"{prefix}.")] = (
            b @ a * (float(weights.get(f"{layer}.alpha", a.shape[0])) / a.shape[0])
        )
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_as_strong_to_every_reader_and_the_next_run(kind, pair, tmp_path):
    both = pair(kind)
    ours = both.ours
    with torch.no_grad():
        for index, parameter in enumerate(ours.trainable().values()):
            parameter.normal_(0, 0.3, generator=generator(index))
    trained = {name: parameter.detach().clone() for name, parameter in ours.trainable().items()}
    updates = {name: ours.module.get_submodule(name).get_delta_weight("default").detach() for name in both.layers()}
    ours.save(tmp_path / "lora", trained)
    close(drawn(tmp_path / "lora", ours.part), updates)
    close(both.loaded(tmp_path / "lora"), updates)
    close(both.begin(tmp_path / "lora"), updates)
    for name, parameter in ours.trainable().items():
        torch.testing.assert_close(parameter, trained[name], rtol=1e-6, atol=1e-8)
    assert {ours.module.get_submodule(name).scaling["default"] for name in both.layers()} == {1.5}


@pytest.mark.parametrize("model", KINDS)
def test_it_is_the_adapter_that_was_written(model, pair, request, tmp_path):
    path, ours = request.getfixturevalue(model), pair(model).ours
    values = {name: torch.randn(p.shape, generator=generator(name)) for name, p in ours.trainable().items()}
    ours.save(tmp_path / "lora", values)
    again = load(path, f"kind: lora, rank: 2, alpha: 3, start: {tmp_path / 'lora'}")
    assert again.trainable().keys() == values.keys()
    for name, parameter in again.trainable().items():
        torch.testing.assert_close(parameter.detach(), values[name], rtol=1e-6, atol=0)
        assert parameter.requires_grad and parameter.dtype == torch.float32


# -- what is refused -------------------------------------------------------------------------------------------------


def changed(both, folder, change):
    """A file of ours, its weights gone through `change`."""
    return written(change(named(both.ours.part, both.matrices())), folder)


DORA = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {n.replace("attn2", "attn9"): x for n, x in w.items()}, r"no place here, 16 of 32 .*attn9"),
        (lambda w: {**w, f"{DORA}.lora_magnitude_vector": torch.ones(8)}, r"1 weights that are no A, B or alpha.*DoRA"),
        (lambda w: {**w, f"{DORA}.dora_scale": torch.ones(8)}, r"no A, B or alpha.*dora_scale"),
        (lambda w: {**w, f"{DORA}.lora_B.bias": torch.ones(8)}, r"no A, B or alpha.*lora_B\.bias.*biases"),
        (lambda w: {**w, f"{DORA}.bias": torch.ones(8)}, r"no A, B or alpha.*to_q\.bias.*biases"),
        (lambda w: {**w, "text_encoder.layers.0.q.lora_A.weight": torch.ones(2, 8)}, "changes a text encoder too"),
        (lambda w: {**w, "lora_te1_q.lora_down.weight": torch.ones(2, 8)}, "changes a text encoder too"),
        (lambda w: {n: x for n, x in w.items() if n != f"{DORA}.lora_B.weight"}, "expected both, of one rank"),
        (
            lambda w: {n: x * float("nan") if n.startswith(DORA) else x for n, x in w.items()},
            "2 weights that are not f",
        ),
        (lambda w: {**w, f"{DORA}.alpha": torch.tensor(-1.0)}, r"alphas \[-1\.0\]; expected numbers above 0"),
        (lambda w: {**w, f"{DORA}.alpha": torch.tensor(1.0)}, "readers take in two ways"),
        (lambda w: {**w, f"{DORA}.alpha": torch.ones(2)}, r"no A, B or alpha.*alpha"),
        (lambda w: {n: x for n, x in w.items() if "attn2" not in n}, r"targets=\[attn1\.to_k.*attn1\.to_v\]"),
        (
            lambda w: {n: torch.cat([x, x], int("lora_B" in n)) for n, x in w.items()},
            r"has rank 4 .*rank=4 model.train.alpha=4$",
        ),
        (lambda w: {n: x[:, :3] if n == f"{DORA}.lora_A.weight" else x for n, x in w.items()}, r"\(2, 3\).*here"),
        (lambda w: {}, "holds no weights at all"),
    ],
)
def test_what_is_no_plain_lora_of_this_model_is_refused_by_name(change, words, pair, tmp_path):
    both = pair("small_sd")
    folder = changed(both, tmp_path / "odd", change)
    with pytest.raises(ModelError, match=words):
        both.begin(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "'use_dora': True.*more than a plain LoRA"),
        ({"bias": "all"}, "'bias': 'all'"),
        ({"lora_bias": True}, "'lora_bias': True"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights': 'pissa'"),
        ({"peft_type": "LOHA"}, "'peft_type': 'LOHA'"),
        ({"use_tomorrow": {"its": 1}}, "'use_tomorrow'"),
        ({"modules_to_save": ["conv_in"]}, "'modules_to_save'"),
        ({"r": 4}, "says rank 4 of .* have 2"),
        ({"lora_alpha": "much"}, "PEFT cannot use"),
    ],
)
def test_settings_that_say_more_than_a_plain_lora_are_refused_by_name(settings, words, pair, tmp_path):
    both = pair("small_sd")
    folder = described("unet", both.matrices(), tmp_path / "odd", **settings)
    with pytest.raises(ModelError, match=words):
        both.begin(folder)


def test_alphas_that_diffusers_mixes_up_are_refused(pair, tmp_path):
    both = pair("small_sd")
    names = {f"lora_unet_{name.replace('.', '_')}": pair for name, pair in both.matrices().items()}
    for index, alphas in enumerate([(1.0, 2.0, 3.0), (1.0, 1.0, 2.0)]):
        with pytest.raises(ModelError, match=r"two ways.*by its own.*in diffusers\. Multiply each layer's B"):
            both.begin(written(kohya(names, alphas), tmp_path / str(index)))
    some = kohya(names, (1.0,))
    for name in [name for name in some if name.endswith(".alpha")][1:]:
        del some[name]
    with pytest.raises(ModelError, match="two ways"):
        both.begin(written(some, tmp_path / "some"))


def test_names_that_diffusers_does_not_read_for_the_kind_are_refused(pair, tmp_path):
    weights = kohya({"lora_unet_joint_blocks_0_x_block_attn_proj": (torch.ones(2, 16), torch.ones(16, 2))}, (1.0,))
    folder = written(weights, tmp_path / "kohya")
    with pytest.raises(ModelError, match=r"lora_unet_joint_blocks_0.*names that diffusers does not read for this one"):
        pair("small_sd3").begin(folder)
    with pytest.raises(ModelError, match="names that diffusers does not"):
        pair("small_flux").begin(folder)


def test_layers_in_two_layouts_at_once_are_refused(pair, tmp_path):
    both = pair("small_flux", DOUBLE)
    weights = named("transformer", both.matrices())
    ones = (torch.ones(2, 16), torch.ones(48, 2))
    folder = written(weights | kohya({"lora_unet_double_blocks_0_img_attn_qkv": ones}, ()), tmp_path / "both")
    with pytest.raises(ModelError, match="its converter keeps"):
        both.begin(folder)


def test_a_runs_folder_is_answered_with_its_newest_checkpoint(pair, tmp_path):
    both = pair("small_sd")
    for step in (1, 12):
        step_folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        step_folder.parent.mkdir(exist_ok=True)
        written(named("unet", both.matrices()), step_folder)
    with pytest.raises(ModelError, match=r"a run's folder; name one of its checkpoints.*step-000012$"):
        both.begin(tmp_path)


def test_nothing_there_and_what_is_no_lora_are_refused(pair, tmp_path):
    both = pair("small_sd")
    with pytest.raises(ModelError, match="nothing at"):
        both.begin(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="and 0 other LoRA files"):
        both.begin(tmp_path)
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read as a LoRA"):
        both.begin(tmp_path)
    for name in ("a", "b"):
        shutil.move(written(named("unet", both.matrices()), tmp_path / "made") / FILE, tmp_path / f"{name}.safetensors")
    (tmp_path / FILE).unlink()
    with pytest.raises(ModelError, match=r"2 other LoRA files \['a\.safetensors'"):
        both.begin(tmp_path)
    assert both.begin(tmp_path / "a.safetensors").keys() == both.layers()
    with pytest.raises(ModelError, match="no place here"):
        pair("small_flux").begin(tmp_path / "a.safetensors")


def test_a_start_that_is_not_there_is_seen_before_anything_is_loaded(small_sd, tmp_path):
    hollow = small.hollow(small_sd, tmp_path / "hollow")
    run = small.run(hollow, model__train=f"{{kind: lora, start: {tmp_path / 'nowhere'}}}")
    with pytest.raises(ModelError, match="nothing at"):
        session.check(run)
    (tmp_path / "nowhere").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match="nowhere is a git-lfs pointer"):
        session.check(run)


def test_a_start_of_a_run_that_trained_the_whole_network_is_named(small_sd, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    for name in ("state.json", "trainable.safetensors", "optimizer.safetensors"):
        (checkpoint / name).write_bytes(b"")
    for start in (checkpoint, tmp_path / "run"):
        with pytest.raises(ModelError, match="trained the whole network, and holds no LoRA"):
            session.check_files(small.run(small_sd, model__train=f"{{kind: lora, start: {start}}}"))
