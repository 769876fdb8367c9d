"""Finds where the last turn begins in token ids: the prompt before it may occur again.

Only what the prefix cache keeps depends on the result, never a reward.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rm_core.packing import TokenIds


class LastTurnFinder:
    """Finds the last turn by the special token that the template writes before an answer.

    It gets the token ids that the template writes before and after the answer of a conversation.
    """

    def __init__(
        self,
        before_answer: Sequence[int],
        after_answer: Sequence[int],
        special_ids: Collection[int],
    ) -> None:
        markers = [i for i, token in enumerate(before_answer) if token in special_ids]
        self._marker = before_answer[markers[-1]] if markers else None
        self._num_header_tokens = len(before_answer) - markers[-1] if markers else 0
        self._num_later = after_answer.count(self._marker) if markers else 0

    def find(self, input_ids: TokenIds) -> int:
        """Return the number of tokens before the last turn's content.

        That is all tokens of a template without special tokens, and none if the marker is missing.
        """
        if self._marker is None:
            return len(input_ids)
        backwards, position = input_ids[::-1], -1
        try:
            for _ in range(self._num_later + 1):
                position = backwards.index(self._marker, position + 1)
        except ValueError:
            return 0
        return min(len(input_ids), len(input_ids) - 1 - position + self._num_header_tokens)
