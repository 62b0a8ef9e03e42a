"""SLURM: its commands asked and read, its batch scripts, what a site has."""
