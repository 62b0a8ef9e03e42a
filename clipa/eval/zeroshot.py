"""Zero-shot classification: the class whose prompts are closest to the image (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

import torch

from clipa.data import imagenet
from clipa.data.scored import Source
from clipa.data.sources import FolderLabels, ShardGroups, ShardLabels, ShardTargets
from clipa.errors import DataError
from clipa.eval.job import Job, Outcome
from clipa.eval.metrics import Tally, mean_average_precision, worst_group
from clipa.eval.prompts import Prompts, classifier, settled
from clipa.spec.evalset import GROUP_METRICS
from clipa.spec.plan import Data


def labelled(job: Job, data: Data, prompts: Prompts) -> Source[int]:
    """The labelled images of a set, or of what its probe is trained on.

    Raises:
        DataError: no image, or class folders that are not those of the classes.
    """
    asked, bench = job.data, job.bench
    if data.layout == "shards":
        return ShardLabels(bench.shards(data), len(prompts.classes))
    manifest = bench.manifest(data)
    found = [shard.name for shard in manifest.shards]
    if asked.names and asked.names != "objectnet":
        folders = imagenet.folder_order(asked.names, found, manifest.url)
    else:
        folders = asked.folders or asked.classes
    if set(folders) != set(found):
        raise DataError("the class folders are not those of the classes", where=manifest.url)
    return FolderLabels(manifest, folders)


@torch.no_grad()
def classify(job: Job) -> Outcome:
    """Score every image of a set against the prompts of its classes, on all ranks."""
    if job.data.metric in GROUP_METRICS:
        return _classify_groups(job)
    prompts = settled(job.data)
    source = labelled(job, job.data.data, prompts)
    columns = classifier(job.bench, prompts).T
    tally = Tally(len(prompts.classes), job.bench.ranks.device)
    for images, labels in job.batches(source):
        logits = _logits(job, images, columns)
        tally.add(logits, torch.tensor(labels, device=logits.device))
    job.bench.ranks.total(tally.counts)
    return Outcome(tally.samples, tally.metrics(), empty=tally.empty)


def _classify_groups(job: Job) -> Outcome:
    """The same, and the accuracy in the group where it is lowest."""
    bench, prompts = job.bench, settled(job.data)
    source = ShardGroups(bench.shards(job.data.data), len(prompts.classes), job.data.group)
    columns = classifier(bench, prompts).T
    tally = Tally(len(prompts.classes), bench.ranks.device)
    rows = [torch.zeros((0, 3), dtype=torch.int64, device=bench.ranks.device)]
    for images, truths in job.batches(source):
        logits = _logits(job, images, columns)
        labels = torch.tensor([truth.label for truth in truths], device=logits.device)
        groups = torch.tensor([truth.group for truth in truths], device=logits.device)
        tally.add(logits, labels)
        among = logits.topk(min(5, logits.shape[1]), dim=-1).indices == labels[:, None]
        rows.append(torch.stack([groups, (logits.argmax(dim=-1) == labels).long(), among.any(dim=-1).long()], dim=1))
    bench.ranks.total(tally.counts)
    gathered = bench.ranks.gather(torch.cat(rows))
    metrics = {**tally.metrics(), **worst_group(gathered, len(prompts.classes))}
    return Outcome(tally.samples, metrics, empty=tally.empty)


@torch.no_grad()
def multilabel(job: Job) -> Outcome:
    """Rank all images by their closeness to each class's prompts: mean average precision."""
    bench, prompts = job.bench, settled(job.data)
    source = ShardTargets(bench.shards(job.data.data), len(prompts.classes))
    columns = classifier(bench, prompts).T
    width = len(prompts.classes)
    scores = [torch.zeros((0, width), device=bench.ranks.device)]
    targets = [torch.zeros((0, width), dtype=torch.int8, device=bench.ranks.device)]
    for images, truths in job.batches(source):
        scores.append(_logits(job, images, columns))
        targets.append(torch.tensor(truths, device=bench.ranks.device).to(torch.int8))
    everything, truth = bench.ranks.gather(torch.cat(scores)), bench.ranks.gather(torch.cat(targets))
    return Outcome(len(everything), {"mean_average_precision": mean_average_precision(everything, truth)})


def _logits(job: Job, images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    # The factor is CLIP_benchmark's; it settles near-ties of rounding the same way.
    return 100.0 * job.bench.image_features(images, job.view) @ columns
