"""Shards to batches: the same ones for every world, number of workers and start; bad samples keep their places."""

import multiprocessing
import pickle
from pathlib import Path

import msgspec
import pytest
import torch

from clipa.data.faults import STRETCH
from clipa.data.index import Part
from clipa.data.pipeline import Batch, ShardSet, _TrainShare, normalise, open_shards, train_batches
from clipa.data.scored import ScoredBatch, View, scored_batches
from clipa.data.shards import Reader
from clipa.data.sources import ShardLabels
from clipa.data.wds import shard_bytes
from clipa.errors import ConfigError, DataError
from clipa.made import demo
from clipa.spec.job import Portion
from clipa.storage.manifest import Manifest, Shard
from tests.services.batches import opened, phase


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    demo.write(str(folder))
    return folder


def batches(
    shards: ShardSet, *, rank: int = 0, world: int = 1, start: int = 0, stop: int = 3, workers: int = 0, seed: int = 5
) -> list[Batch]:
    return list(
        train_batches(
            shards,
            phase(),
            seed=seed,
            rank=rank,
            world=world,
            start_step=start,
            stop_step=stop,
            workers=workers,
            pin=False,
        )
    )


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        all(torch.equal(a[part], b[part]) for part in range(3))  # type: ignore[arg-type]
        for a, b in zip(left, right, strict=True)
    )


def test_batches_are_what_they_say(bucket: Path) -> None:
    for batch in batches(opened(bucket, "train")):
        assert (batch.images.shape, batch.images.dtype) == ((24, 3, 16, 16), torch.uint8)
        assert (batch.tokens.shape, batch.tokens.dtype) == ((24, 8), torch.int64)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.faults == ()
        assert (batch.tokens[:, 0] == 49_406).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_don_t_change_the_batches(bucket: Path, workers: int) -> None:
    shards = opened(bucket, "train")
    assert same(batches(shards, workers=workers), batches(shards))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_the_ranks_together_see_the_global_batch(bucket: Path, world: int) -> None:
    shards = opened(bucket, "train")
    shares = [batches(shards, rank=rank, world=world) for rank in range(world)]
    joined = [
        Batch(*(torch.cat([b[part] for b in step]) for part in range(3)))  # type: ignore[misc]
        for step in zip(*shares, strict=True)
    ]
    assert same(joined, batches(shards))
    assert torch.cat([b.positions for b in joined]).tolist() == list(range(3 * 24))


def mixed_batches(bucket: Path, rank: int = 0, world: int = 1, start: int = 0) -> list[Batch]:
    portions = (Portion(name="train", weight=0.25), Portion(name="val", weight=0.75))
    phase_of_two = msgspec.structs.replace(phase(), data=portions)
    stream = train_batches(
        opened(bucket, "train"), phase_of_two, mixed=[opened(bucket, "val")], seed=5, rank=rank, world=world,
        start_step=start, stop_step=6, workers=rank, pin=False,
    )  # fmt: skip
    return list(stream)


def test_a_mixture_is_the_same_for_every_world_and_start(bucket: Path) -> None:
    whole = mixed_batches(bucket)
    assert same(mixed_batches(bucket, start=4), whole[4:])
    halves = [mixed_batches(bucket, rank=rank, world=2) for rank in range(2)]
    joined = [
        Batch(*(torch.cat([a[part], b[part]]) for part in range(3)))  # type: ignore[misc]
        for a, b in zip(*halves, strict=True)
    ]
    assert same(joined, whole)
    for split in ("train", "val"):
        assert not same(whole, batches(opened(bucket, split), stop=6))


def test_a_resumed_stream_goes_on_as_if_nothing_had_happened(bucket: Path) -> None:
    shards = opened(bucket, "val")  # 200 samples: steps 6 to 12 cross an epoch's end
    assert same(batches(shards, start=7, stop=12, workers=1), batches(shards, stop=12)[7:])
    assert not same(batches(shards, seed=6), batches(shards))
    assert batches(shards, start=4, stop=4, workers=2) == []


def test_loading_leaves_the_trainers_random_numbers_alone(bucket: Path) -> None:
    state = torch.get_rng_state()
    batches(opened(bucket, "val"), workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def scored(
    shards: ShardSet, size: int, batch: int, rank: int = 0, world: int = 1, workers: int = 0
) -> list[ScoredBatch[int]]:
    view = View(size=size, resize="shorter", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    source = ShardLabels(shards, 10)
    return list(scored_batches(source, view, batch=batch, rank=rank, world=world, workers=workers))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (3, 0), (7, 0)])
def test_evaluation_sees_every_sample_once(bucket: Path, world: int, workers: int) -> None:
    shards = opened(bucket, "val")
    parts = [
        batch
        for rank in range(world)
        for batch in scored(shards, size=32, batch=16, rank=rank, world=world, workers=workers)
    ]
    whole = scored(shards, size=32, batch=200)
    assert len(whole) == 1
    assert [label for p in parts for label in p.truths] == list(whole[0].truths)
    assert torch.equal(torch.cat([p.images for p in parts]), whole[0].images)
    assert max(len(p.truths) for p in parts) <= 16


def test_a_rank_may_get_no_sample(tmp_path: Path, bucket: Path) -> None:
    shards = written(tmp_path, [("a", {"jpg": picture(bucket), "cls": b"3"})])
    found = [scored(shards, size=16, batch=8, rank=r, world=4, workers=1) for r in range(4)]
    assert sorted(len(batches) for batches in found) == [0, 0, 0, 1]


def written(folder: Path, samples: list[tuple[str, dict[str, bytes]]]) -> ShardSet:
    data = shard_bytes(samples)
    (folder / "0.tar").write_bytes(data)
    return open_shards(Manifest(url="memory://x", shards=(Shard(name="0.tar", size=len(data)),)), folder)


def picture(bucket: Path) -> bytes:
    reader = Reader(opened(bucket, "val"), Part.CAPTION)
    image = reader.read(0).image
    reader.close()
    return image


def test_bad_samples_are_replaced_the_same_way_for_every_world(tmp_path: Path, bucket: Path) -> None:
    image = picture(bucket)
    samples = []
    for number in range(60):
        bad = {"jpg": image[:200]} if number % 3 == 0 else {"jpg": image}
        caption = {"json": b"{}"} if number % 7 == 1 else {"txt": f"number {number}".encode()}
        samples.append((f"{number:03d}", {**bad, **caption}))
    shards = written(tmp_path, samples)
    whole = batches(shards)
    assert 20 < sum(len(batch.faults) for batch in whole) < 40
    halves = [batches(shards, rank=rank, world=2, workers=rank) for rank in range(2)]
    joined = [
        Batch(*(torch.cat([a[part], b[part]]) for part in range(3)))  # type: ignore[misc]
        for a, b in zip(*halves, strict=True)
    ]
    assert same(joined, whole)
    assert [a.faults + b.faults for a, b in zip(*halves, strict=True)] == [b.faults for b in whole]


@pytest.mark.parametrize(("bad", "stops"), [(9, True), (17, False)])
def test_too_large_a_share_of_bad_samples_stops_the_run(
    tmp_path: Path, bucket: Path, caplog: pytest.LogCaptureFixture, bad: int, stops: bool
) -> None:
    image = picture(bucket)
    samples = [(f"k{n}", {"jpg": b"broken" if n % bad == 0 else image, "txt": b"x"}) for n in range(180)]  # 11 % or 6 %
    shards = written(tmp_path, [*samples, ("incomplete", {"jpg": image})])
    steps = -(-STRETCH // 24)
    if stops:
        with pytest.raises(
            DataError,
            match=r"11\d of the last 1008 samples cannot be used: image 11\d; by .*0.tar 11\d; such as .*: k\d",
        ) as caught:
            batches(shards, stop=steps, workers=1)
        assert caught.value.where == str(tmp_path)
    else:
        found = batches(shards, stop=steps, workers=1)
        assert 50 < sum(len(batch.faults) for batch in found) < 70
        assert "the image cannot be decoded" in next(b.faults[0].what for b in found if b.faults)
    told = [record.getMessage() for record in caplog.records]
    assert sum("1 samples have no image, or neither" in line and "180 remain" in line for line in told) == 1
    replaced = [line for line in told if "were replaced: image " in line]
    assert 1 < len(replaced) <= 3  # the 1st, the 10th and the 100th, or the batch that they came in


def test_what_makes_batches_travels_to_workers_that_are_not_forked(bucket: Path) -> None:
    share = _TrainShare([Reader(opened(bucket, "val"), Part.CAPTION)], phase(), "clip-bpe", 5, 0, 1)
    before = share(3)
    assert same([pickle.loads(pickle.dumps(share))(3)], [before])


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_is_all_bad_is_an_error_with_examples(tmp_path: Path, workers: int) -> None:
    shards = written(tmp_path, [(f"key{n}", {"jpg": b"broken", "txt": b"x"}) for n in range(30)])
    with pytest.raises(DataError) as caught:
        batches(shards, workers=workers)
    assert "samples in a row cannot be used" in caught.value.what
    assert "0.tar: key" in caught.value.what
    assert "Traceback" not in str(caught.value)


def test_a_broken_image_in_an_evaluation_is_an_error(tmp_path: Path, bucket: Path) -> None:
    shards = written(tmp_path, [("ok", {"jpg": picture(bucket), "cls": b"1"}), ("bad", {"jpg": b"x", "cls": b"1"})])
    before = {child.pid for child in multiprocessing.active_children()}
    with pytest.raises(DataError) as caught:
        scored(shards, size=16, batch=2, workers=1)
    assert caught.value.where.endswith("0.tar: bad")
    left = {child.pid for child in multiprocessing.active_children()} - before
    assert left == set(), "the workers live as long as the error's traceback"


def test_a_batch_that_can_t_be_divided_is_refused(bucket: Path) -> None:
    with pytest.raises(ConfigError, match="24 cannot be divided among 5"):
        batches(opened(bucket, "val"), world=5)


def test_normalise() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    found = normalise(images, mean, std)
    assert found.dtype == torch.float32
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        assert (found[:, channel].double() - expected).abs().max() < 1e-5
