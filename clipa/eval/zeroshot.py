"""Zero-shot classification: the class whose prompts are closest to the image (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

import torch

from clipa.data import imagenet
from clipa.data.scored import FolderLabels, ShardLabels, Source, scored_batches
from clipa.errors import DataError
from clipa.eval.job import Job, Outcome
from clipa.eval.metrics import Tally
from clipa.eval.prompts import Prompts, classifier, settled


def labelled(job: Job, prompts: Prompts) -> Source[int]:
    """The labelled images of a set.

    Raises:
        DataError: no image, or class folders that are not those of the classes.
    """
    data, bench = job.data, job.bench
    if data.data.layout == "shards":
        return ShardLabels(bench.shards(data.data), len(prompts.classes), tell=bench.ranks.is_first)
    manifest = bench.manifest(data.data)
    found = [shard.name for shard in manifest.shards]
    if data.names and not data.classes:
        folders = imagenet.folder_order(data.names, found, manifest.url)
    else:
        folders = data.folders or data.classes
    if set(folders) != set(found):
        raise DataError("the class folders are not those of the classes", where=manifest.url)
    return FolderLabels(manifest, folders)


@torch.no_grad()
def classify(job: Job) -> Outcome:
    """Score every image of a set against the prompts of its classes, on all ranks."""
    bench = job.bench
    prompts = settled(job.data)
    source = labelled(job, prompts)
    columns = classifier(bench, prompts).T
    tally = Tally(len(prompts.classes), bench.ranks.device)
    batches = scored_batches(
        source, job.view, batch=bench.batch, rank=bench.ranks.rank, world=bench.ranks.world, workers=bench.workers
    )
    for images, labels in batches:
        # The factor is CLIP_benchmark's; it settles near-ties of rounding the same way.
        logits = 100.0 * bench.image_features(images, job.view) @ columns
        tally.add(logits, torch.tensor(labels, device=logits.device))
    bench.ranks.total(tally.counts)
    return Outcome(tally.samples, tally.metrics())
