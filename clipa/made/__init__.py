"""What clipa makes by itself: the demo data, and pictures."""
