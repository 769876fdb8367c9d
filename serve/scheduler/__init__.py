"""Which waiting sequences form the next batch: fair queueing, batching, retries, quarantine."""
