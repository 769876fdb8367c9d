"""Settings of the service and of each model, and which of them change while it runs."""
