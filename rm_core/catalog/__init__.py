"""Facts about each checkpoint, and published rewards."""
