"""The head in blocks: float32 logits that do not depend on the other conversations."""

from __future__ import annotations

import pytest
import torch

from rm_core.heads import LinearHead


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 1024])
def test_logit_is_the_same_alone_and_among_others(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(150, size, generator=generator).to(dtype)
    row = torch.randn(1, size, generator=generator)
    head = LinearHead(row, None)
    logits = head.apply(hidden)
    assert logits.dtype == torch.float32
    exact = (hidden.double() @ row.T.double()).float()
    torch.testing.assert_close(logits, exact, atol=1e-4, rtol=1e-6)
    order = torch.randperm(150, generator=generator)
    assert torch.equal(head.apply(hidden[order]), logits[order])
    for count in (1, 2, 63, 64, 65):
        assert torch.equal(head.apply(hidden[-count:]), logits[-count:])
