"""One training or evaluation process: its arguments and last words, its ranks and device, the weights it reads."""
