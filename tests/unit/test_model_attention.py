"""bf16 attention on a CPU is torch's own attention, to the rounding of bf16."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from clipa.model.attention import SelfAttention, attend, heads_of, joined


@pytest.mark.parametrize("causal", [False, True])
def test_bf16_on_a_cpu_is_attention_with_its_gradients(causal: bool) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(3, 2, 9, 16, dtype=torch.float64).bfloat16().double().requires_grad_() for _ in range(3)]
    rounded = [t.detach().bfloat16().requires_grad_() for t in exact]
    upstream = torch.randn(3, 2, 9, 16)
    expected = scaled_dot_product_attention(*exact, is_causal=causal)
    expected.backward(upstream.double())
    found = attend(*rounded, causal=causal)
    found.backward(upstream.bfloat16())
    assert found.dtype == torch.bfloat16
    for mine, theirs in ((found, expected), *((a.grad, b.grad) for a, b in zip(rounded, exact, strict=True))):
        torch.testing.assert_close(mine.double(), theirs, rtol=0.02, atol=0.02)
    other = scaled_dot_product_attention(*exact, is_causal=not causal)
    assert (found.double() - other).abs().max() > 0.2, "a wrong mask would pass"


def test_heads_go_apart_and_come_together() -> None:
    qkv = torch.arange(2 * 3 * 24.0).view(2, 3, 24)
    q, k, v = heads_of(qkv, 2)
    assert torch.equal(torch.cat([joined(part) for part in (q, k, v)], dim=2), qkv)
    assert torch.equal(q[0, 1, 2], qkv[0, 2, 4:8])


def test_the_blocks_attention_is_timms() -> None:
    from clipa.model.towers import VisionTransformer

    torch.manual_seed(0)
    theirs = VisionTransformer(img_size=8, patch_size=4, embed_dim=32, depth=1, num_heads=4).blocks[0].attn
    ours = SelfAttention(theirs.qkv, theirs.proj, 4)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
    with pytest.raises(AssertionError):
        ours(x, is_causal=True)
