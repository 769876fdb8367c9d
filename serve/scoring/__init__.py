"""Conversations in, rewards out, without HTTP and without Ray: models, tokenization, limits."""
