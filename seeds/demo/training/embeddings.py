"""First values of the embeddings: words that occur in the same conversations start alike.

Counting and a singular value decomposition (positive pointwise mutual information, as Levy and
Goldberg described in "Neural Word Embedding as Implicit Matrix Factorization", 2014) teach the
small model in seconds what would take it hours of reading.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast


def word_classes(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Map every token id to a number shared by its spellings ("Cat", " cat"); -1 for no word."""
    classes: dict[str, int] = {}
    result = []
    for token_id in range(len(tokenizer)):
        text = str(tokenizer.decode([token_id])).strip().lower()
        wordlike = (len(text) > 2 and text.isalpha()) or any("\u3000" < c < "\ufffd" for c in text)
        wordlike = wordlike or text.isdigit()
        result.append(classes.setdefault(text, len(classes)) if wordlike else -1)
    return result


def cooccurrence_embeddings(
    documents: list[list[int]], classes: list[int], size: int
) -> torch.Tensor:
    """Return first embeddings, float32 `[len(classes), size]`, each row of about unit length.

    Spellings of a word share most of their vector; tokens that are no words get a random one.
    """
    num_classes = max(classes) + 1
    table = torch.zeros(num_classes, num_classes)
    for start in range(0, len(documents), 4096):
        chunk = documents[start : start + 4096]
        present = torch.zeros(len(chunk), num_classes)
        for row, ids in enumerate(chunk):
            words = list({classes[i] for i in ids} - {-1})
            if words:
                present[row, words] = len(words) ** -0.5
        table += present.T @ present
    total = table.sum()
    share = table.sum(1).clamp_min(1e-9) / total
    ppmi = (table / total / (share[:, None] * share[None, :])).clamp_min(1.0).log()
    left, scale, _ = torch.svd_lowrank(ppmi, q=size, niter=4)
    meaning = torch.nn.functional.normalize(left * scale.sqrt(), dim=1)
    rows = torch.nn.functional.normalize(torch.randn(len(classes), size), dim=1)
    known = torch.tensor(classes)
    is_word = known >= 0
    rows[is_word] = 0.35 * rows[is_word] + meaning[known[is_word]]
    return rows
