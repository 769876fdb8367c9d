"""A model on its device, one thread; the watchdog; and how a gateway reaches it."""
