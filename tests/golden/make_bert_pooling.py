"""Writes bert_pooling.npz: BERT pooling in PyTorch, for test_bert_pooling.

In: weights and tokens of `reference_weights`, by key. Out: pooled features `[B, D]` for 2, 4 and 8
tokens, without a mask and under one, and one gradient; no weights. The block is put together here
from PyTorch's own attention and the published description (arXiv:2008.01232).

    pip install torch==2.13.0 numpy
    python tests/golden/make_bert_pooling.py
"""

import pathlib
import sys

import numpy as np
import torch
from torch import nn

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))
import reference_weights  # noqa: E402

WIDTH, HEADS, BATCH = 512, 8, 3


class Norm(nn.Module):
  def __init__(self):
    super().__init__()
    self.weight = nn.Parameter(torch.empty(WIDTH))
    self.bias = nn.Parameter(torch.empty(WIDTH))

  def forward(self, x):
    std = torch.std(x, dim=-1, correction=1, keepdim=True)
    return self.weight * (x - x.mean(-1, keepdim=True)) / (std + 1e-6) + self.bias


class Pooling(nn.Module):
  def __init__(self, tokens: int, dropout: float = 0.0):
    super().__init__()
    self.cls = nn.Parameter(torch.empty(1, 1, WIDTH))
    self.positions = nn.Parameter(torch.empty(1, 1 + tokens, WIDTH))
    self.norm1 = Norm()
    self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=dropout, batch_first=True)
    self.norm2 = Norm()
    self.feed_forward = nn.Sequential(
      nn.Linear(WIDTH, 4 * WIDTH),
      nn.GELU(approximate="tanh"),
      nn.Linear(4 * WIDTH, WIDTH),
    )
    self.dropout = nn.Dropout(dropout)

  def forward(self, tokens, hidden=None):
    """`hidden`, bool `[B, T']`, is true for tokens that nothing attends to."""
    x = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
    x = self.dropout(x)
    if hidden is not None:
      hidden = nn.functional.pad(hidden, (1, 0), value=False)
    y = self.norm1(x)
    x = x + self.dropout(self.attention(y, y, y, key_padding_mask=hidden)[0])
    expand, activate, contract = self.feed_forward
    y = self.dropout(activate(expand(self.norm2(x))))
    x = x + self.dropout(contract(y))
    return self.dropout(x)[:, 0]


def main() -> None:
  stored = {}
  for count in (2, 4, 8):
    pooling = Pooling(count)
    shapes = {key: tuple(p.shape) for key, p in pooling.state_dict().items()}
    values = reference_weights.state_dict(shapes)
    pooling.load_state_dict({k: torch.from_numpy(v) for k, v in values.items()}, strict=True)
    tokens = torch.from_numpy(reference_weights.clips((BATCH, count, WIDTH))).requires_grad_()
    # Dropout apart, the mask is all that training adds: every clip hides another set of tokens.
    hidden = (torch.arange(count)[None] + torch.arange(BATCH)[:, None]) % 3 == 0
    masked = pooling(tokens, hidden)
    stored[f"tokens{count}"] = pooling(tokens).detach().numpy()
    stored[f"tokens{count}_masked"] = masked.detach().numpy()
    if count == 4:
      probe = torch.from_numpy(reference_weights.clips((BATCH, WIDTH), seed=1))
      stored["tokens4_masked_gradient"] = torch.autograd.grad((masked * probe).sum(), tokens)[0]
  np.savez_compressed(FOLDER / "bert_pooling.npz", **{k: np.asarray(v) for k, v in stored.items()})


if __name__ == "__main__":
  main()
