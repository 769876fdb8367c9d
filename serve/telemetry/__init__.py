"""Metrics, logging and the context of a request."""
