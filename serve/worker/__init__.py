"""A model on its device with its thread and watchdog, and how gateways reach it on Ray Serve."""
