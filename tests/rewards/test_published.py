"""Weights whose shapes fit a network and whose meaning does not are refused, with what to write."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from pcpo_ray import config, rewards, shapes
from pcpo_ray.errors import QualityError, RewardError
from pcpo_ray.rewards import aesthetic, clip, published, quality
from tests.support import small
from tests.support.clips import IMAGES, TEXTS

CPU = torch.device("cpu")
PLAIN, QUICK, WIDE = "tiny-ViT", "tiny-ViT-quickgelu", "tiny-ViT-48"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """A small architecture, its twin with QuickGELU, and one for larger images, as open_clip has them."""
    import open_clip

    folder = tmp_path_factory.mktemp("architectures")
    for name, side, quick in ((PLAIN, 32, False), (QUICK, 32, True), (WIDE, 48, False)):
        described = {
            "embed_dim": 12,
            "quick_gelu": quick,
            "vision_cfg": {"image_size": side, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }
        (folder / f"{name}.json").write_text(json.dumps(described))
        open_clip.add_model_config(folder / f"{name}.json")


def network(name=QUICK):
    import open_clip

    torch.manual_seed(0)
    return open_clip.create_model(name, load_weights=False).eval()


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "weights.pt"
    torch.save(network().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """As OpenAI publishes: TorchScript, which holds the code and so the activation."""
    path = tmp_path_factory.mktemp("archive") / "RN50.pt"
    inputs = {"encode_image": torch.zeros(1, 3, 32, 32), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    made = network()
    mask = made._buffers.pop("attn_mask")  # theirs has none
    made.attn_mask = mask
    torch.jit.trace_module(made, inputs, check_trace=False).save(path)
    return path


def score(model, weights=None):
    return config.ClipScore(kind="clip_score", model=model, weights=None if weights is None else str(weights))


def test_weights_that_do_not_say_their_activation_need_the_twins_full_name(state):
    with pytest.raises(
        RewardError, match=rf"nothing tells with which activation {state}.*write model: {QUICK} for the"
    ):
        rewards.check(score(PLAIN, state))
    rewards.check(score(QUICK, state))
    with torch.no_grad():
        expected = network().encode_text(clip.load(QUICK, str(state), CPU).tokenize(TEXTS))
    found = clip.load(QUICK, str(state), CPU).texts(TEXTS)
    assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-6)
    with pytest.raises(QualityError, match="nothing tells with which activation"):
        quality.features.check(config.ClipFeatures(model=PLAIN, weights=str(state)))


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file", "ignore::torch.jit.TracerWarning")
def test_openais_own_archive_is_certain_and_is_read(archive):
    with pytest.raises(RewardError, match=rf"is of OpenAI's own archive, for {QUICK}; write model: {QUICK}"):
        rewards.check(score(PLAIN, archive))
    with torch.no_grad():
        expected = network().encode_image(clip.load(QUICK, str(archive), CPU).pixels(IMAGES))
    found = clip.load(QUICK, str(archive), CPU).images(IMAGES)
    assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-6)


@pytest.mark.parametrize(("quick", "right", "wrong"), [(True, QUICK, PLAIN), (False, PLAIN, QUICK)])
def test_a_config_beside_the_file_tells_its_activation_and_preprocessing(state, tmp_path, quick, right, wrong):
    path = shutil.copy(state, tmp_path)
    described = {"model_cfg": {"quick_gelu": quick}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    rewards.check(score(right, path))
    with pytest.raises(RewardError, match=rf"open_clip_config\.json describes, for {right}; write model: {right}"):
        rewards.check(score(wrong, path))
    normal = clip.load(right, str(path), CPU).normal
    assert normal is not None
    mean, std = normal
    assert mean.flatten().tolist() == [0.5] * 3 and std.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("CLIP-ViT-L-14-laion2B-s32B-b82K/open_clip_pytorch_model.bin", "ViT-L-14"),
        ("models--laion--CLIP-ViT-L-14-DataComp.XL-s13B-b90K/snapshots/0/open_clip_model.safetensors", "ViT-L-14"),
        ("DFN2B-CLIP-ViT-L-14/open_clip_pytorch_model.bin", "ViT-L-14-quickgelu"),
        ("DFN2B-CLIP-ViT-L-14-39B/open_clip_pytorch_model.bin", "ViT-L-14"),
        ("l14_400m.pt", "ViT-L-14-quickgelu"),
        ("vit_l_14-laion400m_e32-3d133497.pt", "ViT-L-14"),
        ("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", "ViT-B-32-quickgelu"),
        ("vit_b_32-laion2b_e16-af8dbd0c.pth", "ViT-B-32"),
        ("CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin", "ViT-H-14"),
        ("DFN5B-CLIP-ViT-H-14/open_clip_pytorch_model.bin", "ViT-H-14-quickgelu"),
        ("rn50-quickgelu-cc12m-f000538c.pt", "RN50-quickgelu"),
        ("vit_large_patch14_clip_224.openai/open_clip_model.safetensors", "ViT-L-14-quickgelu"),
    ],
)
def test_published_files_are_known_by_their_names_or_their_repositorys(tmp_path, path, right):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"weights")
    rewards.check(score(right, file))
    wrong = right.removesuffix("-quickgelu") if right.endswith("-quickgelu") else f"{right}-quickgelu"
    with pytest.raises(RewardError, match=rf"is of open_clip's .*, for {right}; write model: {right}"):
        rewards.check(score(wrong, file))


@pytest.mark.parametrize("name", ["ViT-L-14.pt", "RN50.pt", "open_clip_pytorch_model.bin", "mine.safetensors"])
def test_a_name_that_anybody_may_give_tells_nothing(tmp_path, name):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(RewardError, match="nothing tells with which activation"):
        rewards.check(score("RN50" if "RN" in name else "ViT-L-14", tmp_path / name))


def test_preprocessing_is_the_published_weights_own(tmp_path):
    def preprocessing(model, path):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"weights")
        return published.check_activation(model, file).preprocess

    assert preprocessing("ViT-L-14", "CLIP-ViT-L-14-laion2B-s32B-b82K/model.bin")["mean"] == (0.5, 0.5, 0.5)
    siglip = preprocessing("ViT-B-16-SigLIP", "any.bin")
    assert siglip["mean"] == (0.5, 0.5, 0.5) and siglip["resize_mode"] == "squash"
    assert published.check_activation("ViT-B-16-plus-240", tmp_path / "any.bin") is None


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_weights_for_another_image_size_are_refused_and_not_interpolated(tmp_path, ending):
    from safetensors.torch import save_file

    path = tmp_path / f"large{ending}"
    (save_file if ending == ".safetensors" else torch.save)(network(WIDE).state_dict(), path)
    rewards.load(score(WIDE, path), CPU)
    with pytest.raises(RewardError, match=rf"has 37 places in visual\.positional_embedding, and {QUICK} has 17"):
        rewards.load(score(QUICK, path), CPU)


def test_towers_with_mixed_or_unpublished_activations_are_refused(tmp_path):
    def folder(name, **towers):
        made = tmp_path / name
        made.mkdir()
        (made / "config.json").write_text(json.dumps({"model_type": "clip", **towers}))
        return score(str(made))

    gelu, quick = {"hidden_act": "gelu"}, {"hidden_act": "quick_gelu"}
    with pytest.raises(RewardError, match=r"text_config\.hidden_act gelu and vision_config\.hidden_act quick_gelu"):
        rewards.check(folder("mixed", text_config=gelu, vision_config={}))
    with pytest.raises(RewardError, match="hidden_act gelu, and clip-vit-large-patch14 was trained with quick_gelu"):
        rewards.check(folder("clip-vit-large-patch14", text_config=gelu, vision_config=gelu))
    with pytest.raises(
        RewardError, match="hidden_act quick_gelu, and CLIP-ViT-H-14-laion2B-s32B-b79K was trained with"
    ):
        rewards.check(folder("CLIP-ViT-H-14-laion2B-s32B-b79K", text_config=quick, vision_config=quick))
    rewards.check(folder("own", text_config=gelu, vision_config=gelu))
    with pytest.raises(RewardError, match="is clip-vit-base-patch32, not PickScore_v1"):
        rewards.check(config.PickScore(kind="pickscore", model=folder("clip-vit-base-patch32").model))


def changed(folder, made, file, **values):
    copy = shutil.copytree(folder, made)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


def test_a_processor_of_another_network_is_refused(clip_transformers, tmp_path):
    def refused(words, processor):
        with pytest.raises(RewardError, match=words):
            rewards.load(
                config.PickScore(kind="pickscore", model=str(clip_transformers), processor=str(processor)), CPU
            )

    name = "preprocessor_config.json"
    larger = {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
    refused(
        r"makes images of \(40, 40\), and the network takes 32",
        changed(clip_transformers, tmp_path / "a", name, **larger),
    )
    raw = changed(clip_transformers, tmp_path / "b", name, do_normalize=False, do_rescale=False)
    refused("has do_rescale, do_normalize false", raw)
    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import clip_tokenizer

    other = shutil.copytree(clip_transformers, tmp_path / "c")
    tokenizer = clip_tokenizer(WORLD)
    tokenizer.add_tokens(["<own>"])
    tokenizer.save_pretrained(other)
    refused("has a tokenizer of .* tokens, and the network", other)


def test_a_tokenizer_without_a_limit_truncates_at_the_networks(clip_transformers, tmp_path):
    folder = changed(clip_transformers, tmp_path / "clip", "tokenizer_config.json", model_max_length=10**30)
    found = clip.load(str(folder), None, CPU).tokenize(["a red circle " * 100])
    assert found["input_ids"].shape == (1, 16)


def test_laions_head_takes_openais_clip_only(tmp_path):
    head = tmp_path / "head.pth"
    made = aesthetic.layers(aesthetic.LAION_WIDTH).state_dict()
    torch.save({f"layers.{name}": weight for name, weight in made.items()}, head)

    def folder(name, file, described):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(described))
        return {"model": str(tmp_path / name)}

    def weights(model, path):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"weights")
        return {"model": model, "weights": str(file)}

    def clip_folder(name, **vision):
        acts = {"hidden_act": vision.get("hidden_act", "quick_gelu")}
        return folder(name, "config.json", {"model_type": "clip", "text_config": acts, "vision_config": vision})

    quick = "ViT-L-14-quickgelu"
    for given in (
        weights(quick, "ViT-L-14.pt"),
        weights(quick, "vit_large_patch14_clip_224.openai/model.safetensors"),
        clip_folder("clip-vit-large-patch14", patch_size=14),
        folder(
            "timm",
            "open_clip_config.json",
            {"model_cfg": {"quick_gelu": True, "vision_cfg": {"image_size": 224, "patch_size": 14}}},
        ),
    ):
        rewards.check(config.Aesthetic(kind="aesthetic", head=str(head), **given))
    for given, words in (
        (weights("ViT-L-14", "CLIP-ViT-L-14-laion2B-s32B-b82K/model.bin"), "is a ViT-L-14;"),
        (weights(quick, "DFN2B-CLIP-ViT-L-14/model.bin"), "is open_clip's ViT-L-14, dfn2b;"),
        (clip_folder("laion", patch_size=14, hidden_act="gelu"), "is one with GELU, as LAION's are"),
        (clip_folder("clip-vit-large-patch14-336", patch_size=14, image_size=336), "is one for images of 336"),
    ):
        with pytest.raises(RewardError, match=rf"trained on OpenAI's ViT-L-14, and .*{words}.*write model: {quick}"):
            rewards.check(config.Aesthetic(kind="aesthetic", head=str(head), **given))


def test_hps_has_one_activation_and_each_version_its_own_file(tmp_path):
    (tmp_path / "HPS_v2_compressed.pt").write_bytes(b"weights")
    path = str(tmp_path / "HPS_v2_compressed.pt")
    rewards.check(config.Hps(kind="hps_v2.0", weights=path))
    with pytest.raises(RewardError, match=r"is the file of hps_v2\.0, not hps_v2\.1; write kind: hps_v2\.0"):
        rewards.check(config.Hps(kind="hps_v2.1", weights=path))
    with pytest.raises(
        RewardError, match="trained with GELU, and ViT-H-14-quickgelu has QuickGELU; write architecture"
    ):
        rewards.check(config.Hps(kind="hps_v2.0", weights=path, architecture="ViT-H-14-quickgelu"))


def test_placeholders_of_git_lfs_are_named_before_anything_is_loaded(tmp_path):
    def pointer(name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(POINTER)
        return str(tmp_path / name)

    folder = shutil.copytree(shapes.checkpoint("shapes-clip"), tmp_path / "clip")
    pointer("clip/open_clip_model.safetensors")
    assert clip.locate(str(folder), None)  # what plan asks: it needs no weights
    fetched = shutil.copytree(shapes.checkpoint("shapes-clip"), tmp_path / "fetched")
    for name in ("open_clip_pytorch_model.bin", "model.safetensors", "tf_model.h5"):  # what nobody reads
        pointer(f"fetched/{name}")
    rewards.check(score(str(fetched)))
    words = r"is a git-lfs pointer, not the file itself: run git lfs pull"
    for kind in (
        score(str(folder)),
        score(QUICK, pointer("weights.pt")),
        config.Hps(kind="hps_v2.1", weights=pointer("HPS_v2.1_compressed.pt")),
        config.Aesthetic(kind="aesthetic", head=pointer("head.pth"), model="shapes-clip"),
    ):
        with pytest.raises(RewardError, match=words):
            rewards.check(kind)
    inception = config.InceptionFeatures(weights=pointer("inception.pth"))
    lpips = config.Lpips(weights=pointer("alex.pth"))
    for asked in ({"features": config.ClipFeatures(), "lpips": lpips}, {"features": inception}):
        run = small.run("model")
        wanted = dataclasses.replace(run.evaluation, quality=config.Quality(**asked))
        with pytest.raises(QualityError, match=words):
            quality.check(dataclasses.replace(run, evaluation=wanted))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_the_tensors_name(tmp_path, bad):
    broken = network().state_dict()
    broken["text_projection"] = broken["text_projection"].clone()
    broken["text_projection"][0, 0] = bad
    torch.save(broken, tmp_path / "weights.pt")
    with pytest.raises(RewardError, match=r"weights\.pt: text_projection has numbers that are not finite"):
        rewards.load(score(QUICK, tmp_path / "weights.pt"), CPU)
    head = aesthetic.layers(128)
    dict(head.named_parameters())["2.bias"].data[0] = bad
    torch.save({f"layers.{name}": weight for name, weight in head.state_dict().items()}, tmp_path / "head.pth")
    with pytest.raises(RewardError, match=r"head\.pth: 2\.bias has numbers that are not finite"):
        rewards.load(config.Aesthetic(kind="aesthetic", head=str(tmp_path / "head.pth"), model="shapes-clip"), CPU)
