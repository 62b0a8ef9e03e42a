"""Weights to open_clip and back, loaded there by its own API; refusals that leave nothing behind."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from clipa.attempt.weights import read_tensors, verify, write_tensors
from clipa.data.tokenizer import tokenizer
from clipa.errors import ConfigError, TrainError
from clipa.launch.weights import check, from_word
from clipa.model import jax_names
from clipa.model.clip import Clip
from clipa.model.convert import convert, main
from clipa.model.open_clip_names import to_open_clip
from clipa.model.sources import Source, Wishes
from clipa.model.targets import write
from clipa.model.torchvision_guard import import_torchvision
from clipa.spec.card import CARD_NAME, WEIGHTS_NAME, Card
from clipa.spec.family import FAMILIES
from clipa.spec.model import ImageTower, Model, TextTower
from tests.vocabulary import made_vocabulary

import_torchvision()
import open_clip  # noqa: E402

KINDS = [
    ("v1", "cls", "learnable", "softmax"),
    ("v1", "gap", "sincos2d", "softmax"),
    ("v1", "gap-norm", "learnable", "sigmoid"),
    ("v2", "gap-norm", "sincos2d", "softmax"),
    ("v2-open_clip", "gap-norm", "learnable", "softmax"),
]
PROMPTS = ["a photo of a dog", "", "Zürich, 24/7: the café's naïve [MASK] 🙂", "many " * 40 + "words"]


@pytest.fixture(autouse=True)
def vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text(made_vocabulary())
    monkeypatch.setenv("CLIPA_BERT_VOCAB", str(tmp_path / "words"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer.cache_clear()


def source(
    family: str, pool: str, positions: str = "learnable", loss: str = "softmax", size: int = 32, tokens: int = 12
) -> Source:
    own = FAMILIES[family]
    model = Model(
        family=family,
        embed_dim=24,
        image=ImageTower(patch=8, width=48, layers=2, heads=3, mlp_ratio=4.5, pool=pool),
        text=TextTower(width=32, layers=2, heads=2, tokenizer=own.tokenizer),
    )
    torch.manual_seed(1)
    clip = Clip(model, size, tokens, positions, loss)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.requires_grad and parameter.ndim == 1 and parameter.numel() > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    card = Card(
        model=model, image_size=size, text_tokens=tokens, positions=positions, loss=loss, mean=own.mean, std=own.std
    )
    return Source(card=card, weights=clip.state_dict(), kind="clipa")


def checkpoint(folder: Path, made: Source) -> Path:
    write(made, folder, "clipa")
    return folder


def loaded(folder: Path) -> Clip:
    """The model of a checkpoint folder, as training and evaluation load it."""
    card = verify(folder).card
    clip = Clip(card.model, card.image_size, card.text_tokens, card.positions, card.loss).eval()
    clip.load(read_tensors(folder / WEIGHTS_NAME))
    return clip


def picture() -> Image.Image:
    return Image.effect_mandelbrot((61, 45), (-2, -1.2, 1, 1.2), 40).convert("RGB")


@pytest.mark.parametrize(("family", "pool", "positions", "loss"), KINDS)
@torch.no_grad()
def test_open_clip_loads_the_folder_and_gives_the_same_scores(
    family: str, pool: str, positions: str, loss: str, tmp_path: Path
) -> None:
    mine = checkpoint(tmp_path / "mine", source(family, pool, positions, loss))
    done = convert(mine, tmp_path / "theirs", Wishes())
    assert (done.form, done.source) == ("open_clip", "clipa")
    name = f"local-dir:{tmp_path / 'theirs'}"
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    theirs.eval()
    ids = open_clip.get_tokenizer(name)(PROMPTS)
    own = FAMILIES[family]
    assert torch.equal(tokenizer(own.tokenizer).encode(PROMPTS, 12), ids)
    assert tuple(preprocess.transforms[-1].mean) == own.mean
    assert preprocess.transforms[0].interpolation.value == own.interpolation
    images = preprocess(picture())[None]
    assert images.shape == (1, 3, 32, 32)
    image, text, *logit = theirs(images, ids)
    found = loaded(mine)(images, ids)
    expected = logit[0] * image @ text.T + (logit[1] if loss == "sigmoid" else 0)
    scores = found.scale * found.image @ found.text.T + (0 if found.bias is None else found.bias)
    assert (loss == "sigmoid") == (len(logit) == 2)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-2, "the scores differ from prompt to prompt"


@pytest.mark.parametrize(("family", "pool", "positions", "loss"), KINDS)
def test_there_and_back_is_the_same(family: str, pool: str, positions: str, loss: str, tmp_path: Path) -> None:
    made = source(family, pool, positions, loss)
    mine = checkpoint(tmp_path / "mine", made)
    convert(mine, tmp_path / "theirs", Wishes())
    done = convert(tmp_path / "theirs", tmp_path / "back", Wishes())
    assert (done.form, done.source) == ("clipa", "open_clip")
    assert msgspec.structs.replace(verify(tmp_path / "back").card, origin="") == made.card
    back = read_tensors(tmp_path / "back" / WEIGHTS_NAME)
    assert set(back) == set(made.weights)
    assert all(torch.equal(back[key], weight) for key, weight in made.weights.items())
    convert(tmp_path / "back", tmp_path / "again", Wishes())
    for file in (tmp_path / "theirs").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("family", ["v1", "v2-open_clip"])
@torch.no_grad()
def test_another_size_is_open_clips_own(family: str, tmp_path: Path) -> None:
    mine = checkpoint(tmp_path / "mine", source(family, "gap-norm"))
    convert(mine, tmp_path / "theirs", Wishes())
    convert(mine, tmp_path / "larger", Wishes(image_size=56, text_tokens=20), "clipa")
    theirs = open_clip.create_model(
        f"local-dir:{tmp_path / 'theirs'}", force_image_size=56, force_context_length=20
    ).eval()
    images, ids = torch.randn(2, 3, 56, 56), tokenizer(FAMILIES[family].tokenizer).encode(PROMPTS, 20)
    image, text, _ = theirs(images, ids)
    found = loaded(tmp_path / "larger")(images, ids)
    torch.testing.assert_close(found.image, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text, text, rtol=0, atol=1e-5)


def test_v2_at_another_size_is_recomputed_and_the_notes_say_what_changes(tmp_path: Path) -> None:
    made = source("v2", "gap-norm", "sincos2d")
    mine = checkpoint(tmp_path / "mine", made)
    done = convert(mine, tmp_path / "theirs", Wishes(image_size=56))
    state = read_tensors(tmp_path / "theirs" / "open_clip_model.safetensors")
    fresh = Clip(made.card.model, 56, 12, "sincos2d").image.trunk.pos_embed[0]
    assert torch.equal(state["visual.positional_embedding"], fresh)
    assert any("recomputes" in note for note in done.notes)
    assert any("no [SEP]" in note for note in done.notes)
    assert any("56 px" in note for note in done.notes)


def test_open_clips_weights_can_be_computed_as_published(tmp_path: Path) -> None:
    mine = checkpoint(tmp_path / "mine", source("v2-open_clip", "gap-norm"))
    convert(mine, tmp_path / "theirs", Wishes())
    done = convert(tmp_path / "theirs", tmp_path / "published", Wishes(family="v2"))
    assert done.card.model.family == "v2"
    assert done.card.model.text.tokenizer == "bert-wordpiece"
    assert any("gelu -> gelu-tanh" in note for note in done.notes)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
@pytest.mark.parametrize("style", ["plain", "custom-text", "training"])
def test_files_of_weights(suffix: str, style: str, tmp_path: Path) -> None:
    made = source("v1", "cls")
    state = to_open_clip(made.card.model, made.weights)
    if style == "custom-text":
        state = {key if key.startswith(("visual", "logit")) else f"text.{key}": value for key, value in state.items()}
    if style == "training":
        state = {f"module.{key}": value.half() for key, value in state.items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        write_tensors(path, state)
    else:
        torch.save({"state_dict": state, "epoch": 3, "name": "run"} if style == "training" else state, path)
    convert(checkpoint(tmp_path / "mine", made), tmp_path / "theirs", Wishes())
    config = tmp_path / "theirs" / "open_clip_config.json"
    convert(path, tmp_path / "back", Wishes(model=str(config)))
    back = read_tensors(tmp_path / "back" / WEIGHTS_NAME)
    for key, weight in made.weights.items():
        assert back[key].dtype == torch.float32
        torch.testing.assert_close(back[key], weight, rtol=1e-3 if style == "training" else 0, atol=1e-3)


def test_a_model_of_open_clip_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-S-32-alt")
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    done = convert(tmp_path / "weights.pt", tmp_path / "mine", Wishes(model="ViT-S-32-alt"))
    assert (done.card.model.family, done.card.model.image.pool, done.card.image_size) == ("v1", "cls", 224)
    assert done.parameters == sum(p.numel() for p in theirs.parameters())
    assert any("no preprocess_cfg" in note for note in done.notes)
    with torch.no_grad():
        images = torch.randn(1, 3, 224, 224)
        expected = theirs.eval().encode_image(images, normalize=True)
        torch.testing.assert_close(loaded(tmp_path / "mine").encode_image(images), expected, rtol=0, atol=1e-5)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_file_that_runs_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"visual.proj": Bomb(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="more than tensors"):
        convert(tmp_path / "weights.pt", tmp_path / "mine", Wishes(model="ViT-B-16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.pt", "words"]


def _refusals(tmp_path: Path) -> dict[str, tuple[Path, Wishes, str]]:
    made = source("v1", "cls")
    mine = checkpoint(tmp_path / "mine", made)
    convert(mine, tmp_path / "theirs", Wishes())
    state = to_open_clip(made.card.model, made.weights)
    config = json.loads((tmp_path / "theirs" / "open_clip_config.json").read_text())

    def changed(name: str, **keys: object) -> Wishes:
        new = json.loads(json.dumps(config))
        for key, value in keys.items():
            part, _, last = key.rpartition("__")
            (new["model_cfg"][part] if part else new["model_cfg"])[last] = value
        (tmp_path / f"{name}.json").write_text(json.dumps(new))
        return Wishes(model=str(tmp_path / f"{name}.json"))

    write_tensors(tmp_path / "w.safetensors", state)
    write_tensors(tmp_path / "less.safetensors", {key: v for key, v in state.items() if key != "ln_final.bias"})
    write_tensors(tmp_path / "more.safetensors", state | {"visual.extra": torch.zeros(2)})
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0")
    (tmp_path / "torn.pt").write_bytes(b"PK")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "open_clip_config.json").write_text(json.dumps(config))
    checkpoint(tmp_path / "all", source("v1", "gap-all"))
    (checkpoint(tmp_path / "cut", made) / WEIGHTS_NAME).write_bytes(b"cut")
    w = tmp_path / "w.safetensors"
    return {
        "nothing": (tmp_path / "nowhere", Wishes(), "no such file or folder"),
        "a folder": (tmp_path / "empty", Wishes(), "no weights that clipa can read"),
        "no weights": (tmp_path / "bare", Wishes(), "no weights"),
        "no model": (w, Wishes(), "--model ViT-B-16"),
        "unknown model": (w, Wishes(model="ViT-Q-1"), "ViT-Q-1"),
        "path in a name": (w, Wishes(model="../../x"), "no model"),
        "no config": (w, Wishes(model=str(tmp_path / "none.json")), "cannot be read"),
        "config of another": (w, Wishes(model="ViT-B-16"), "missing"),
        "quick gelu": (w, changed("quick", quick_gelu=True), "quick_gelu is True"),
        "timm": (w, changed("timm", vision_cfg__timm_model_name="vit_base"), "timm_model_name"),
        "attention pool": (w, changed("pool", vision_cfg__attentional_pool=True), "attentional_pool"),
        "layer scale": (w, changed("ls", text_cfg__ls_init_value=1e-4), "ls_init_value"),
        "first": (w, changed("first", text_cfg__pool_type="first"), "text.text_pool is 'first'"),
        "half tanh": (w, changed("tanh", vision_cfg__act_kwargs={"approximate": "tanh"}), "vision.activation"),
        "gelu": (w, changed("gelu", vision_cfg__act_kwargs={"approximate": "fast"}), "approximate"),
        "eps": (w, changed("eps", text_cfg__norm_kwargs={"eps": 1e-3}), "text.eps is 0.001"),
        "hf words": (w, changed("hf", text_cfg__hf_tokenizer_name="roberta-base"), "text.tokenizer is 'roberta-base'"),
        "width": (w, changed("width", vision_cfg__width=96), "visual|image"),
        "type": (w, changed("type", embed_dim="wide"), "embed_dim"),
        "less": (tmp_path / "less.safetensors", changed("same"), "1 weights are missing, the first is ln_final.bias"),
        "more": (tmp_path / "more.safetensors", changed("same"), "visual.extra"),
        "torn": (tmp_path / "torn.safetensors", changed("same"), "cannot be read"),
        "torn pt": (tmp_path / "torn.pt", changed("same"), "broken"),
        "list": (tmp_path / "list.pt", changed("same"), "no weights by name"),
        "gap-all": (tmp_path / "all", Wishes(), "gap-all"),
        "cut": (tmp_path / "cut", Wishes(), "not what was written"),
        "other family": (mine, Wishes(family="v2"), "families are not mixed"),
        "other pool": (mine, Wishes(pool="gap"), "pool by cls, not gap"),
        "size": (mine, Wishes(image_size=30), "30 is not divisible by the patch 8"),
        "negative": (mine, Wishes(image_size=-8), "image size"),
        "short": (mine, Wishes(text_tokens=2), "text tokens"),
    }


def test_bad_input_is_named_and_nothing_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = _refusals(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, (path, wishes, message) in cases.items():
        said = ""
        try:
            convert(path, tmp_path / "out", wishes)
        except ConfigError as error:
            said = str(error)
        assert any(word in said for word in message.split("|")), f"{name}: {said or 'accepted'}"
        assert sorted(p.name for p in tmp_path.iterdir()) == before, name
    with pytest.raises(ConfigError, match="something already"):
        convert(tmp_path / "mine", tmp_path / "theirs", Wishes())
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert capfd.readouterr().err.startswith("error: ")


def test_a_converted_folder_starts_a_fine_tune_and_the_wrong_model_is_refused(tmp_path: Path) -> None:
    made = source("v1", "cls")
    convert(checkpoint(tmp_path / "mine", made), tmp_path / "theirs", Wishes())
    convert(tmp_path / "theirs", tmp_path / "back", Wishes())
    weights = from_word(str(tmp_path / "back"), [], tmp_path)
    check(weights, made.card.model, tmp_path)
    other = source("v2", "gap-norm").card.model
    with pytest.raises(ConfigError, match="family is v1, the recipe's model has v2"):
        check(weights, other, tmp_path)
    assert json.loads((tmp_path / "back" / CARD_NAME).read_text())["origin"] == "open_clip_model.safetensors"


def test_the_command_relays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = checkpoint(tmp_path / "mine", source("v1", "cls"))
    assert main([str(mine), str(tmp_path / "theirs"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["form"] == "open_clip"
    argv = [sys.executable, "-m", "clipa.cli.main", "convert", str(mine), str(tmp_path / "theirs"), "--to", "clipa"]
    again = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "something already" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "model.module."])
def test_prefixes_of_wrappers_are_stripped(prefix: str, tmp_path: Path) -> None:
    made = source("v1", "cls")
    convert(checkpoint(tmp_path / "mine", made), tmp_path / "theirs", Wishes())
    state = to_open_clip(made.card.model, made.weights)
    write_tensors(tmp_path / "w.safetensors", {f"{prefix}{key}": value for key, value in state.items()})
    convert(tmp_path / "w.safetensors", tmp_path / "back", Wishes(model=str(tmp_path / "theirs/open_clip_config.json")))
    back = read_tensors(tmp_path / "back" / WEIGHTS_NAME)
    assert all(torch.equal(back[key], weight) for key, weight in made.weights.items())


def _edited(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A folder of open_clip whose tensors were changed."""
    made = source("v1", "cls")
    convert(checkpoint(tmp_path / "mine", made), tmp_path / "theirs", Wishes())
    state = to_open_clip(made.card.model, made.weights)
    change(state)
    write_tensors(tmp_path / "theirs/open_clip_model.safetensors", state)
    return tmp_path / "theirs"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_with_the_tensors_names(value: float, tmp_path: Path) -> None:
    folder = _edited(tmp_path, lambda state: state.update({"ln_final.weight": state["ln_final.weight"] * value}))
    with pytest.raises(ConfigError, match=r"NaN or infinity: text\.ln_final\.weight"):
        convert(folder, tmp_path / "back", Wishes())
    card = source("v1", "cls").card
    model = Clip(card.model, card.image_size, card.text_tokens, card.positions, card.loss)
    broken = model.state_dict() | {"text.ln_final.bias": torch.full_like(model.text.ln_final.bias, value)}
    with pytest.raises(TrainError, match=r"NaN or infinity: text\.ln_final\.bias"):
        model.load(broken)


def test_positions_that_contradict_the_configuration_are_noted_with_both_lengths(tmp_path: Path) -> None:
    def shorten(state: dict[str, torch.Tensor]) -> None:
        state["positional_embedding"] = state["positional_embedding"][:8].clone()

    done = convert(_edited(tmp_path, shorten), tmp_path / "back", Wishes())
    assert any("has 8 positions" in note and "context_length means 12" in note for note in done.notes)


def test_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    def rename(state: dict[str, torch.Tensor]) -> None:
        state["text_model.final_layer_norm.weight"] = state.pop("ln_final.weight")

    with pytest.raises(ConfigError, match="transformers' CLIPModel"):
        convert(_edited(tmp_path, rename), tmp_path / "back", Wishes())
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    config = str(tmp_path / "theirs/open_clip_config.json")
    with pytest.raises(ConfigError, match="TorchScript archive") as caught:
        convert(tmp_path / "program.pt", tmp_path / "back", Wishes(model=config))
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("key", ["layers", "width", "image_size"])
def test_a_configuration_of_a_billion_is_refused_at_once(key: str, tmp_path: Path) -> None:
    folder = _edited(tmp_path, lambda state: None)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"][key] = 10**9
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=key):
        convert(folder, tmp_path / "back", Wishes())


def test_an_npz_header_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("params/img/embedding/kernel.npy", header.getvalue())
    with pytest.raises(ConfigError, match=r"claims \[1000000, 1000000\]"):
        jax_names.Arrays(tmp_path / "bomb.npz").peek("img/embedding/kernel")


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_a_resize_mode_that_the_card_does_not_keep_is_noted(mode: str, tmp_path: Path) -> None:
    folder = _edited(tmp_path, lambda state: None)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = mode
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert any(f"by {mode}" in note for note in convert(folder, tmp_path / "back", Wishes()).notes)
