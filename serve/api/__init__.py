"""The HTTP API: the FastAPI application, its middleware and its routes."""
