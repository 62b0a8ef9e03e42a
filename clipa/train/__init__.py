"""Training: the loop, its optimizer, its checkpoints, its processes, its metrics."""
