"""What kind of failure it was, by lines as libraries and kernels write them."""

from __future__ import annotations

import pytest

from clipa.host.blame import blame


@pytest.mark.parametrize(
    ("error", "logs", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", [], "GPU memory"),
        ("RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed.", [], "host memory"),
        ("SLURM ended it: out of memory", [], "host memory"),
        ("clipa.train was ended by SIGKILL from outside", ["slurmstepd: error: Detected 1 oom_kill event"],
         "host memory"),
        ("OSError: [Errno 28] No space left on device", [], "storage"),
        ("the checkpoint cannot be written: [Errno 122] Disk quota exceeded", [], "storage"),
        ("/nvme/staged/ab: 9,000 bytes to fetch, 10 bytes free: 67,117,854 short", [], "storage"),
        ("s3://b/00000.tar: the server cannot be reached", [], "network"),
        ("the node n3 failed its check: 2 uncorrectable ECC errors: GPU-1", [], "node"),
        ("RuntimeError: CUDA error: unspecified launch failure, device-side assert", [], "node"),
        ("DistNetworkError: EADDRINUSE", [], "rendezvous"),
        ("torch.distributed.DistBackendError: NCCL error ... ncclSystemError", [], "network"),
        ("Connection closed by peer [10.0.0.2]:1234", ["n2: CUDA out of memory."], "GPU memory"),
        ("s3://b/00000.tar: it is cut off", [], "data"),
        ("ValueError: x must be positive", [], "code"),
        ("ValueError: x must be positive", ["KeyError: 'y'"], "code"),
        ("its supervisor left without a word (exit code 137 of the step)", [], "outside"),
    ],
)  # fmt: skip
def test_blame(error: str, logs: list[str], cause: str) -> None:
    found = blame(error, logs)
    assert found.cause == cause
    assert found.line in error or found.line in logs
