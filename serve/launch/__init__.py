"""Starts the service, on Ray or in one process: addresses, ingress, HAProxy, shutdown."""
