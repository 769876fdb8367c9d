"""Executors, which score the conversations of a job: in this process, by a service, on Ray."""
