"""From what img2dataset leaves in a bucket to a recipe that names it, as docs/data.md leads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from clipa.data.index import Part
from clipa.data.shards import Reader, caption_of, open_shards
from clipa.spec.cluster import Dataset
from clipa.storage import manifest as manifests
from clipa.storage.store import Store
from tests.services.faults import FaultProxy
from tests.services.laid_out import img2dataset
from tests.services.s3 import client, new_bucket
from tests.services.wire import proxy, server, streamed  # noqa: F401 - fixtures


def clipa(*words: str, cwd: Path) -> str:
    argv = [sys.executable, "-m", "clipa.cli.main", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_bucket_becomes_a_dataset_that_a_recipe_names(tmp_path: Path, server: str, proxy: FaultProxy) -> None:  # noqa: F811
    made = tmp_path / "made"
    img2dataset(made, 3, 7)
    assert sorted(path.name for path in made.glob("00002*")) == ["00002.parquet", "00002.tar", "00002_stats.json"]
    name, s3 = new_bucket(server), client(server)
    for path in made.iterdir():
        s3.put_object(Bucket=name, Key=f"laion/{path.name}", Body=path.read_bytes())
    url = f"s3://{name}/laion"
    (tmp_path / "clipa.toml").write_text(
        'recipe = "clipa-b16-i50-t16"\ncluster = "cpu"\n[datasets]\n'
        f'laion = {{ url = "{url}", endpoint = "{proxy.url}" }}\n'
    )

    proxy.paths.clear()
    assert "3 shards" in (said := clipa("data", "index", "laion", cwd=tmp_path))
    assert "21 samples; 0 scanned" in said
    read = {path.partition("?")[0].rpartition("/")[2] for command, path in proxy.paths if command == "GET"}
    assert not {file for file in read if file.endswith((".tar", ".parquet"))}, "a shard was read"
    manifest = manifests.decode(Store(Dataset(url=url, endpoint=proxy.url)).read(manifests.MANIFEST_NAME))
    assert [(shard.name, shard.samples) for shard in manifest.shards] == [(f"{n:05d}.tar", 7) for n in range(3)]

    words = ["--set", "phases.pretrain.data=laion", "--set", "phases.pretrain.evaluate.sets=[]"]
    said = clipa("submit", "pretrain", *words, "--dry-run", "--json", cwd=tmp_path)
    (plan,) = json.loads(said)["plans"]
    data = plan["data"]
    assert (data["shards"], data["samples"], data["manifest"]) == (3, 21, manifest.digest)

    reader = Reader(open_shards(manifest, made), Part.CAPTION)
    sample = reader.read(7 + 3)
    assert (sample.key, caption_of(sample)) == ("000010003", "picture 3 of 1")
