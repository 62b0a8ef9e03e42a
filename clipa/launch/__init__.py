"""From a recipe and a cluster to running processes: plan, render, submit, supervise, control."""
