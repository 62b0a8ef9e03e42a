"""Zero-shot retrieval: texts that look for their image, images that look for one of their texts; cues and images."""

from __future__ import annotations

import torch

from clipa.data.scored import share_of
from clipa.data.sources import ShardCandidates, ShardCaptions
from clipa.eval import metrics
from clipa.eval.job import Job, Outcome


@torch.no_grad()
def retrieve(job: Job) -> Outcome:
    """R@1, 5, 10 both ways: the share of queries with at least one of their own among the best (CLIP_benchmark).

    Features are embedded by all ranks and gathered on each; every rank then compares its share of the queries with
    all candidates, in chunks: images x texts numbers are nowhere at once.
    """
    bench, ranks = job.bench, job.bench.ranks
    source = ShardCaptions(bench.shards(job.data.data))
    image_parts = [torch.zeros((0, bench.card.model.embed_dim), device=ranks.device)]
    text_parts, owners = [image_parts[0]], [torch.zeros(0, dtype=torch.int64, device=ranks.device)]
    number = share_of(source.samples, ranks.rank, ranks.world).start
    for images, captions in job.batches(source):
        image_parts.append(bench.image_features(images, job.view))
        text_parts.append(bench.text_features([caption for some in captions for caption in some]))
        counts = torch.tensor([len(some) for some in captions], device=ranks.device)
        owners.append(torch.arange(number, number + len(images), device=ranks.device).repeat_interleave(counts))
        number += len(images)
    image, text = ranks.gather(torch.cat(image_parts)), ranks.gather(torch.cat(text_parts))
    owner = ranks.gather(torch.cat(owners))
    own = torch.arange(len(image), device=ranks.device)
    mine = share_of(len(text), ranks.rank, ranks.world)
    image_hits = metrics.recall_hits(text[mine.start : mine.stop], owner[mine.start : mine.stop], image, own)
    mine = share_of(len(image), ranks.rank, ranks.world)
    text_hits = metrics.recall_hits(image[mine.start : mine.stop], own[mine.start : mine.stop], text, owner)
    found = metrics.retrieval(len(image), len(text), ranks.total(image_hits), ranks.total(text_hits))
    return Outcome(len(image), found)


@torch.no_grad()
def associate(job: Job) -> Outcome:
    """Which of the candidates go with a cue: Jaccard index of as many of the closest as there are (WinoGAViL).

    The prompt is DataComp's: "A werewolf", "An apple".
    """
    bench, ranks = job.bench, job.bench.ranks
    source = ShardCandidates(bench.shards(job.data.data))
    instances: list[int] = []
    truths: list[bool] = []
    scores: list[torch.Tensor] = []
    for images, candidates in job.batches(source):
        features = bench.image_features(images, job.view)
        cues = sorted({candidate.cue for candidate in candidates})
        of_cue = dict(zip(cues, bench.text_features([cue_prompt(cue) for cue in cues]), strict=True))
        scores.append((features * torch.stack([of_cue[c.cue] for c in candidates])).sum(dim=1))
        instances += [c.instance for c in candidates]
        truths += [c.associated for c in candidates]
    device = ranks.device
    found = metrics.jaccard(
        ranks.gather(torch.tensor(instances, dtype=torch.int64, device=device)),
        ranks.gather(torch.cat([torch.zeros(0, device=device), *scores])),
        ranks.gather(torch.tensor(truths, dtype=torch.int8, device=device)).bool(),
    )
    return Outcome(source.samples, found)


def cue_prompt(cue: str) -> str:
    """A cue as DataComp asks for it."""
    word = cue.strip().lower()
    return f"An {word}" if word[0] in "aeiou" else f"A {word}"
