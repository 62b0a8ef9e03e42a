"""The cluster of these tests."""

from tests.services.slurm import slurm

__all__ = ["slurm"]
