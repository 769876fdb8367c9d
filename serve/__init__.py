"""HTTP, Ray, command line and clients around `rm_core`. Start reading at `serve.app.build`."""

__version__ = "0.1.0"
