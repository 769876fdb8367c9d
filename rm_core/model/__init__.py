"""Opens, checks and loads a checkpoint, places the model on devices and runs its forward pass.

A checkpoint that cannot be opened, or would score wrongly, raises `ModelLoadError`. The message
says why, and what to do.
"""
