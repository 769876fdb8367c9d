"""Opens, checks and loads a checkpoint, places the model on devices and runs its forward pass."""
