"""Starts the service, on Ray or in one process: addresses, ingress, HAProxy, shutdown.

What cannot be started raises `ModelLoadError`, before anything is started where possible.
"""
