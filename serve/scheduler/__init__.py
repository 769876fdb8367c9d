"""Chooses the sequences of the next batch: fair queueing, batching, retries, quarantine."""
