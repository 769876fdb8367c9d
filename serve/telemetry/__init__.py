"""Metrics, log lines and the record of a request."""
