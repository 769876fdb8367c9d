"""Which prompts are in the prefix caches of a model's replicas, as far as this gateway can tell.

An estimate: other gateways use the replicas too, and a replica may have been replaced. It decides
how many conversations share a batch and where the batch goes, never a reward: a replica computes
what it does not have.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from rm_core.packing import TokenIds


@dataclass(frozen=True, slots=True)
class Prompt:
    """The first tokens of a sequence, which other sequences may share.

    Attributes:
        key: hash of the token ids.
        num_tokens: number of tokens.
    """

    key: int
    num_tokens: int

    @classmethod
    def of(cls, sequence: TokenIds, num_tokens: int, salt: str) -> Prompt:
        """Return the prompt of a sequence with a salt, its first `num_tokens` tokens."""
        return cls(hash((salt, sequence[:num_tokens])), num_tokens)


class PromptIndex:
    """The prompts that were sent to replicas last, as many as a prefix cache holds.

    Attributes:
        max_tokens: maximum number of tokens in the prefix cache of a replica; 0 without one.
    """

    def __init__(self) -> None:
        self.max_tokens = 0
        # Each with the id of the replica that has it, or is assumed to get it.
        self._prompts: OrderedDict[Prompt, str] = OrderedDict()
        self._num_tokens = 0

    def count_cached(self, prompt: Prompt | None) -> int:
        """Estimate how many tokens of a prompt need not be computed: all or none."""
        return prompt.num_tokens if prompt is not None and prompt in self._prompts else 0

    def find_replica(self, prompts: Iterable[Prompt | None]) -> str:
        """Return the id of the replica that has most tokens of the prompts; empty if unknown."""
        num_tokens: Counter[str] = Counter()
        for prompt in set(prompts):
            if prompt is not None and (replica := self._prompts.get(prompt)):
                num_tokens[replica] += prompt.num_tokens
        return max(num_tokens, key=num_tokens.__getitem__, default="")

    def add(self, prompt: Prompt, replica: str = "") -> None:
        """Record that a sequence with this prompt was sent, or that a replica has computed it."""
        if prompt not in self._prompts:
            self._num_tokens += prompt.num_tokens
        self._prompts[prompt] = replica or self._prompts.get(prompt, "")
        self._prompts.move_to_end(prompt)
        while self._num_tokens > self.max_tokens:
            oldest, _ = self._prompts.popitem(last=False)
            self._num_tokens -= oldest.num_tokens
