"""Two towers, where they meet, and the loss."""
