"""A checkpoint as a model that scores: opened, checked, loaded, placed, and its forward pass."""
