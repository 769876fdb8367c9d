"""The HTTP API: the FastAPI application, its middleware, its routes."""
