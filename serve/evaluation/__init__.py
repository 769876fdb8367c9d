"""Evaluation: benchmark results of a model, a service or a file of scores."""
