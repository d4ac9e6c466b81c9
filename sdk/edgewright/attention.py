"""Attention as pruning needs it: with heads that can go, one by one.

`nn.MultiheadAttention` demands that its heads fill its whole width, so it cannot lose one. While a model is
pruned, `Attention` stands in its place, and it stays where heads went.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) whose heads together may be narrower than its inputs.

    It is called as `nn.MultiheadAttention` is, and gives the same outputs.

    Attributes:
        query, key, value: From the input's width to `num_heads * head_dim`.
        out: Back to the input's width.
        num_heads: Heads that are left.
        head_dim: Channels of each.
        batch_first: Inputs are (N, length, width), else (length, N, width).
    """

    # `nn.TransformerEncoderLayer` looks here before it takes a path that knows only nn.MultiheadAttention.
    in_proj_bias = None
    in_proj_weight = None
    _qkv_same_embed_dim = True

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        width = source.embed_dim
        weight, bias = source.in_proj_weight, source.in_proj_bias
        parts = [
            nn.Linear(width, width, bias=bias is not None, device=weight.device, dtype=weight.dtype)
            for _ in range(3)
        ]
        with torch.no_grad():
            for index, part in enumerate(parts):
                rows = slice(index * width, (index + 1) * width)
                part.weight.copy_(weight[rows])
                if bias is not None:
                    part.bias.copy_(bias[rows])
        self.query, self.key, self.value = parts
        self.out = nn.Linear(width, width, bias=source.out_proj.bias is not None)
        self.out.weight, self.out.bias = source.out_proj.weight, source.out_proj.bias
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.dropout, self.batch_first = source.dropout, source.batch_first
        self.train(source.training)

    @staticmethod
    def fits(source: nn.MultiheadAttention) -> bool:
        """Whether attention is of the plain kind: one width, and no keys and values of its own."""
        return source.embed_dim == source.kdim == source.vdim and not (
            isinstance(source.bias_k, Tensor) or source.add_zero_attn
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends. Shapes and masks are those of `nn.MultiheadAttention`."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        mask = self._mask(query, key, key_padding_mask, attn_mask)
        q, k, v = self._split(self.query(query)), self._split(self.key(key)), self._split(self.value(value))
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            attended = functional.dropout(weights, self.dropout, self.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=is_causal and mask is None,
            )
        out = self.out(attended.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _split(self, x: Tensor) -> Tensor:
        """(N, length, heads * head_dim) to (N, heads, length, head_dim)."""
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, query: Tensor, key: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores, or None."""
        added = None if mask is None else _as_added(mask, query.dtype)
        if added is not None and added.ndim == 3:
            added = added.view(len(query), -1, *added.shape[1:])
        if padding is not None:
            hidden = _as_added(padding, query.dtype)[:, None, None, :]
            added = hidden if added is None else added + hidden
        return added if added is None or added.ndim == 4 else added.expand(1, 1, -1, key.shape[1])


def _as_added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is True where nothing is seen, as minus infinity there; others stay."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)


@dataclass(slots=True)
class Replaced:
    """The attention of a model that `Attention` stands for, by name of the module."""

    originals: dict[str, nn.MultiheadAttention] = field(default_factory=dict)

    @classmethod
    def in_model(cls, model: nn.Module) -> Replaced:
        """Replaces all plain attention of a model."""
        found = cls()
        for name, module in list(model.named_modules()):
            if name and isinstance(module, nn.MultiheadAttention) and Attention.fits(module):
                found.originals[name] = module
                model.set_submodule(name, Attention(module))
        return found

    def restore(self, model: nn.Module) -> None:
        """Puts the originals back wherever no head went."""
        for name, original in self.originals.items():
            try:
                now = model.get_submodule(name)
            except AttributeError:  # it went with its block
                continue
            if isinstance(now, Attention) and now.num_heads == original.num_heads:
                model.set_submodule(name, original)
