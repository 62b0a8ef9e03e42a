"""Small files of clipa's own, broken in every way: one error that names the file and a cure, and nothing else."""

import json
import os
import random
import resource

import msgspec
import pytest
import torch

from clipa.attempt.weights import CorruptCheckpoint, verify, write_tensors
from clipa.errors import ClipaError
from clipa.host import bad_nodes
from clipa.image.file import Exported, sidecar
from clipa.image.file import read as read_exported
from clipa.model import open_clip_config
from clipa.registry import calibration, records, roots, skips
from clipa.registry.calibration import Calibration
from clipa.registry.jobs import Job
from clipa.registry.run_dir import RunDir, write_whole
from clipa.registry.scan import scan
from clipa.registry.skips import Skip
from clipa.slurm import scheduler
from clipa.spec import card as cards
from clipa.spec import plan as plans
from clipa.spec.record_file import BrokenRecord, MissingRecord, read_lines, read_lines_of, read_record
from clipa.staging.cache import About, listing, use
from clipa.staging.check import verify as verify_folder
from clipa.staging.receipt import Receipts
from clipa.storage import manifest as manifests
from tests.services.train_runs import make_run

OPEN_CLIP = {
    "model_cfg": {"embed_dim": 8, "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "patch_size": 4},
                  "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every small file that a run has, and a checkpoint."""
    run = make_run(tmp_path_factory.mktemp("records"), "x", steps=10)
    assert run.claim(1)
    records.write_stop(run, 1, "cancel")
    skips.write(run, [Skip(at=3, steps=4, why="spike")])
    folder, plan = run.step_dir(10), plans.read(run.plan)
    folder.mkdir(parents=True)
    files = {cards.WEIGHTS_NAME: write_tensors(folder / cards.WEIGHTS_NAME, {"w": torch.ones(3)})}
    write_whole(folder / cards.CARD_NAME, msgspec.json.encode(cards.card_of(plan, 10)))
    raw = (folder / cards.CARD_NAME).read_bytes()
    files[cards.CARD_NAME] = cards.File(size=len(raw), sha256=_sha256(raw))
    write_whole(folder / cards.COMPLETE_NAME, msgspec.json.encode(files))
    return run


def _sha256(raw):
    import hashlib

    return hashlib.sha256(raw).hexdigest()


def _about(folder):
    cache = folder / "cache"
    use(cache / "staged" / "d", About(url="s3://b", bytes=10, shards=1))
    return cache / "staged" / "d" / ".about.json", lambda: listing(cache)


def _receipts(folder):
    (folder / "a.tar").write_bytes(b"1")
    Receipts(folder).add("a.tar", "ab" * 16, "sha256")
    return folder / ".receipts.jsonl", lambda: Receipts(folder).vouches("a.tar")


def _memory(folder):
    job = Job(id="1", name="x", word="RUNNING", t=1.0, start=2.0)
    scheduler._remember(folder / "m", scheduler._Memory(t=1.0, jobs=(job,)))
    return folder / "m", lambda: scheduler._recall(folder / "m")


def _bad_node(folder):
    bad_nodes.remember(folder, "n1", "ECC")
    return folder / bad_nodes.FOLDER / "n1.json", lambda: bad_nodes.known(folder, 12)


def _calibration(folder):
    model = plans.read(make_run(folder, "y").plan).model
    path = calibration.write(folder, Calibration(t=1.0, gpu="H100", gpus=1, model=model, patches=4, image_tokens=4,
                                                 text_tokens=8, micro_batch=8, samples_per_s=10.0))  # fmt: skip
    return path, lambda: calibration.read([folder])


def _exported(folder):
    path = folder / "a.sif"
    write_whole(sidecar(path), msgspec.json.encode(Exported(image="a", digest="d", bytes=1)))
    return sidecar(path), lambda: read_exported(path)


def _open_clip(folder):
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps(OPEN_CLIP))
    return path, lambda: open_clip_config.read(path)


def _root(folder, monkeypatch):
    monkeypatch.setenv("CLIPA_CONFIG", str(folder / "config"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    roots.remember(folder)
    (path,) = (path for path in (folder / "config").rglob("*") if path.is_file())
    return path, roots.known_roots


def _staged(folder):
    make_run(folder, "z")
    (path,) = (folder / "runs" / "z" / "manifests").iterdir()
    target = folder / "staged" / manifests.MANIFEST_NAME
    write_whole(target, path.read_bytes())
    return target, lambda: verify_folder(target.parent, lambda *_: None)


ELSEWHERE = {
    "about": _about, "receipts": _receipts, "squeue answer": _memory, "bad node": _bad_node, "image": _exported,
    "calibration": _calibration, "open_clip config": _open_clip, "staged manifest": _staged, "root": _root,
}  # fmt: skip


def _in_run(run, name):
    """The path of a small file of a run, and what reads it."""
    (manifest,) = (run.path / "manifests").iterdir()
    root = run.path.parent
    folder = run.step_dir(10)
    return {
        "COMPLETE": (folder / cards.COMPLETE_NAME, lambda: verify(folder)),
        "card": (folder / cards.CARD_NAME, lambda: cards.read_card(folder)),
        "plan": (run.plan, lambda: (scan([root]), records.read_plan(run))),
        "intent": (run.intent(1), lambda: (scan([root]), records.read_intent(run, 1))),
        "stop": (run.stop_file(1), lambda: (scan([root]), records.read_stop(run, 1))),
        "skips": (run.skips, lambda: skips.read(run)),
        "manifest": (manifest, lambda: manifests.read(manifest, manifest.stem)),
    }[name]


INSIDE = ("COMPLETE", "card", "plan", "intent", "stop", "skips", "manifest")


@pytest.fixture
def record(request, run, tmp_path, monkeypatch):
    """A small file, and what reads it; its content is as it was afterwards."""
    name = request.param
    if name in INSIDE:
        path, reads = _in_run(run, name)
    else:
        path, reads = ELSEWHERE[name](*([tmp_path, monkeypatch] if name == "root" else [tmp_path]))
    raw = path.read_bytes()
    yield path, reads
    if path.is_dir() or path.is_fifo():
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(raw)


EVERY = pytest.mark.parametrize("record", [*INSIDE, *ELSEWHERE], indirect=True)


def _is_a_value_or_our_error(reads):
    try:
        reads()
    except ClipaError as broken:
        error = broken
    else:
        return
    assert error.where, f"the error names the file: {error}"
    assert error.hint or error.allowed, f"and a cure: {error}"


def _flip(path, raw, bit):
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


@EVERY
def test_a_flipped_bit_is_a_value_or_one_error(record):
    path, reads = record
    raw = path.read_bytes()
    for bit in random.Random(1).sample(range(8 * len(raw)), min(8 * len(raw), 60)):
        _flip(path, raw, bit)
        _is_a_value_or_our_error(reads)


@pytest.mark.long
@EVERY
def test_every_flipped_bit_is_a_value_or_one_error(record):
    path, reads = record
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        _flip(path, raw, bit)
        _is_a_value_or_our_error(reads)


BROKEN = {
    "empty": b"", "no UTF-8": b'{"a": "\xff"}', "another type": b"[1, 2]", "null": b"null", "binary": os.urandom(64),
    "deep": b"[" * 200_000, "digits": b'{"schema": ' + b"9" * 6000 + b"}", "absurd": b'{"t": 1e999, "attempt": -1}',
    "NaN": b'{"t": NaN}', "lone surrogate": b'{"url": "\\ud800"}', "two documents": b"{}\n{}",
}  # fmt: skip


@EVERY
def test_any_other_content_is_a_value_or_one_error(record):
    path, reads = record
    raw = path.read_bytes()
    for content in [*BROKEN.values(), *(raw[: len(raw) * part // 8] for part in range(8))]:
        path.write_bytes(content)
        _is_a_value_or_our_error(reads)
    path.write_bytes(raw)
    os.truncate(path, 1 << 34)  # sparse: reading all of it would take 16 GiB
    _is_a_value_or_our_error(reads)
    path.unlink()
    os.mkfifo(path)  # nobody ever writes to it
    _is_a_value_or_our_error(reads)
    path.unlink()
    path.mkdir()
    _is_a_value_or_our_error(reads)


def test_a_flip_in_a_complete_is_seen(run):
    """No changed COMPLETE passes for the one that was written: it holds digests."""
    folder = run.step_dir(10)
    path = folder / cards.COMPLETE_NAME
    raw = path.read_bytes()
    try:
        for bit in range(0, 8 * len(raw), 11):
            _flip(path, raw, bit)
            with pytest.raises(CorruptCheckpoint):
                verify(folder)
    finally:
        path.write_bytes(raw)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "COMPLETE"
    file = json.dumps({"size": 1, "sha256": "0" * 64})
    path.write_text(f'{{"a": {file}, "a": {file}}}')
    with pytest.raises(BrokenRecord, match="the key 'a' is there twice"):
        read_record(path, dict[str, cards.File])


def test_a_missing_file_is_told_from_a_broken_one(tmp_path):
    with pytest.raises(MissingRecord, match="not found"):
        read_record(tmp_path / "no", dict)
    (tmp_path / "yes").write_bytes(b"{")
    with pytest.raises(BrokenRecord) as caught:
        read_record(tmp_path / "yes", dict)
    assert not isinstance(caught.value, MissingRecord)


def test_a_manifest_with_other_rows_is_not_the_one_that_a_plan_pins(run):
    (path,) = (run.path / "manifests").iterdir()
    raw = path.read_bytes()
    try:
        path.write_bytes(raw.replace(b"a.tar", b"b.tar"))
        with pytest.raises(BrokenRecord, match="not those that the plan pins"):
            manifests.read(path, path.stem)
    finally:
        path.write_bytes(raw)


def test_a_line_that_is_too_long_is_one_bad_line_in_bounded_memory(tmp_path):
    path = tmp_path / "lines"
    with open(path, "wb") as file:
        file.write(b'{"a": 1}\n')
        file.truncate(200 << 20)
        file.seek(0, os.SEEK_END)
        file.write(b'\n\n{"a": 2}\n{"a": 3}')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(path, "rb") as file:
        assert list(read_lines_of(file)) == [b'{"a": 1}', None, b'{"a": 2}', b'{"a": 3}']
    assert list(read_lines(path, dict)) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_a_folder_that_is_no_run_has_no_small_files(tmp_path):
    assert records.read_intent(RunDir(tmp_path / "no"), 1) is None
