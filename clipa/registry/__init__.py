"""What happened: run directories are the truth, everything else is derived from them."""
