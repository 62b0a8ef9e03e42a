"""The GPUs that a cluster profile means, for a plan."""

from __future__ import annotations

import os

from clipa.host import devices
from clipa.spec.cluster import Cluster
from clipa.spec.cost import Place
from clipa.spec.hardware import gpu_named, gpu_of


def place_of(cluster: Cluster) -> Place:
    """The place that a profile describes; "auto" looks at this machine.

    Raises:
        ConfigError: a GPU model that clipa does not know, without its numbers.
    """
    gpu, count = gpu_of(cluster), cluster.gpus
    if count == "auto":
        found = devices.gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
        count = devices.usable(found)
        gpu = gpu or (gpu_named(found[0].name) if found else None)
    count *= cluster.nodes
    return Place(cluster=cluster.name, gpus=count, gpu=gpu if count else None, price=cluster.gpu_price)
