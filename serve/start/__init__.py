"""Starts the service: with Ray or in one process, what listens, and how it ends."""
