"""What waits for a model, whose turn it is, and what makes the next batch."""
