"""What a model reads: conversations checked, rendered by a chat template, tokenized, truncated."""
