"""A model on its device, its thread and watchdog, and the backends that gateways call."""
