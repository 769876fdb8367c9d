"""Where the conversations of a job are scored: in this process, by a service, on Ray."""
