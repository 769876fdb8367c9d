"""Evaluation: a benchmark's figures from a model, a service or a file of scores."""
