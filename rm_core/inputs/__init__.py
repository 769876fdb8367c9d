"""Input of a model: conversations are validated, rendered, tokenized and truncated."""
