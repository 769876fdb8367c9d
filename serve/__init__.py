"""HTTP, Ray, command line and clients around `rm_core`."""

__version__ = "0.1.0"
