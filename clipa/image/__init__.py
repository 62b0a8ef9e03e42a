"""The image: what goes into it, its tag, and the one door to the Docker SDK."""
