"""What is known of each checkpoint, and the rewards that others published for it."""
