"""ASGI middleware: authentication, admission control, limits, deadlines, logging.

`stack` fixes the order.
"""
