"""What the loader's benchmark measures is what it says: the same samples, the right shapes, whole sums."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from clipa.bench import pipelines, sources, words
from clipa.bench.fidelity import fidelity
from clipa.bench.pipelines import BATCH, PIPELINES, Job, Stages, measure
from clipa.bench.workers import _Make
from clipa.spec.inputs import ImageInput, TextInput


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("shards")
    sources.write(folder, BATCH)
    return Job(
        folder=str(folder), image=ImageInput(size=32), text=TextInput(tokens=8), tokenizer="clip-bpe",
        rounds=1, batches=1,
    )  # fmt: skip


def test_made_pictures_are_like_those_of_the_web() -> None:
    data = sources.picture(3)
    assert Image.open(io.BytesIO(data)).size == (512, 384)
    assert 35_000 < len(data) < 50_000, "img2dataset's have 41 kB at this size"
    assert data == sources.picture(3) != sources.picture(4)


@pytest.mark.parametrize("name", PIPELINES)
def test_both_pipelines_make_the_same_kind_of_batch(name: str, job: Job) -> None:
    clock = pipelines._Clock()
    images, tokens = PIPELINES[name](job).batch(clock)  # type: ignore[misc]
    assert (images.shape, images.dtype) == ((BATCH, 3, 32, 32), torch.float32)
    assert tuple(tokens.shape) == (BATCH, 8)
    assert abs(float(images.mean())) < 1, "normalised"
    assert all(seconds > 0 for seconds in clock.spent.values())


def test_their_tokens_are_ours(job: Job) -> None:
    found = [PIPELINES[name](job).batch(pipelines._Clock())[1] for name in ("clipa", "open_clip")]  # type: ignore[index]
    assert sorted(found[0].tolist()) == sorted(found[1].long().tolist())


def test_a_stage_is_the_time_of_an_image(job: Job) -> None:
    class Sleepless:
        def batch(self, clock: pipelines._Clock) -> None:
            clock.spent["read"] += 6.4
            clock.spent["floats"] += 0.64

    stages = measure(Sleepless(), rounds=2, batches=2)
    assert stages == Stages(read=6.4 / BATCH, floats=0.64 / BATCH)
    assert stages.total(False) == pytest.approx(6.4 / BATCH)
    assert stages.total(True) == pytest.approx(7.04 / BATCH)


def test_pixels_are_near_to_those_of_a_full_decode(job: Job) -> None:
    found = fidelity(job)
    # 32 and 37 dB at this size, where most are decoded at 1/8: means of 8 x 8 pixels, and little resizing after them.
    # Half a pixel of shift would cost 10 dB of it.
    assert 30 < found.lowest <= found.mean


def test_a_worker_travels_and_makes_uint8(job: Job) -> None:
    import pickle

    images, tokens = pickle.loads(pickle.dumps(_Make(job)))(0)
    assert images.dtype == torch.uint8
    assert tokens.shape == (BATCH, 8)


def test_held_out_captions_are_not_among_those_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"a word{number} of caption {number}" for number in range(60)]
    monkeypatch.setattr(words, "captions", lambda: ("numbered", texts))
    monkeypatch.setattr(words, "_HELD_OUT", 20)
    lines = list(words.compared("clip-bpe", [TextInput(tokens=8)]))
    assert "40 seen before, 20 that are not" in lines[0]
    # Of five words in each two are new: "word12", and "12".
    assert lines[3].endswith("40.00% |")
    assert len(lines) == 5
