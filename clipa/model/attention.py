"""Self-attention of both towers, by what is fastest where it runs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """Softmax attention of [b, heads, n, width of a head], each token looking at those before it when `causal`.

    torch's own, but for bf16 on a CPU: its backward pass there takes 16.7 ms for 16 x 6 heads of 50 tokens, where two
    matrix products and a softmax take 2.4 ms (torch 2.13, one core of a Xeon with AMX; 101 against 37 ms at 197
    tokens). The weights of the attention are kept for it, which torch's own does not: 2 n^2 bytes a head.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return _by_products(q, k, v, causal)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _by_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        n = q.shape[-2]
        later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.matmul(scores.softmax(dim=-1), v)


def heads_of(qkv: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[b, n, 3 * width] as query, key and value, each [b, heads, n, width / heads]."""
    b, n, triple = qkv.shape
    q, k, v = qkv.view(b, n, 3, heads, triple // 3 // heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def joined(attended: torch.Tensor) -> torch.Tensor:
    """[b, heads, n, width of a head] as [b, n, width]."""
    return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """What stands in timm's blocks in the place of its attention: the same weights under the same names."""

    def __init__(self, qkv: nn.Linear, proj: nn.Linear, heads: int) -> None:
        super().__init__()
        self.qkv = qkv
        self.proj = proj
        self.heads = heads

    def forward(self, x: torch.Tensor, attn_mask: None = None, is_causal: bool = False) -> torch.Tensor:
        """Tokens [b, n, width] to the same shape; timm hands a mask and whether it is causal on: neither here."""
        assert attn_mask is None
        assert not is_causal
        attended: torch.Tensor = self.proj(joined(attend(*heads_of(self.qkv(x), self.heads))))
        return attended
