"""What one training or evaluation process is: its arguments and last words, its ranks and device, the weights it reads."""
