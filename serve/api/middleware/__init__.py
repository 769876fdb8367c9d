"""ASGI middleware: authentication, admission, limits, deadlines, logging; `stack` orders it."""
