"""Input of a model: conversations are validated, rendered, tokenized and truncated.

Input that cannot be scored raises an `InputError`: mostly `InvalidConversationError`, which names
the place, `InvalidImageError` for an image, and `TemplateError` for what a template refuses or
fails to render. A tokenizer or template that cannot be used raises `ModelLoadError`.
"""
