"""From conversations to rewards, without HTTP and without Ray: models, tokenization, limits."""
