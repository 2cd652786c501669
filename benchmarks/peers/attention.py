"""The attention blocks over a video's tokens in PyTorch: cross and self attention of the Perceiver, BERT pooling.

In: our parameters, a tree of arrays, and feature maps `[B, T', H', W', C]`. Out: what the block gives, and gradients.
Attention is `torch.nn.functional.scaled_dot_product_attention`. Imports no JAX.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
import torch.nn.functional as F  # type: ignore[import-not-found]

Tree = dict[str, Any]


class Peer:
  """One kind of block with given weights; on a GPU compiled."""

  def __init__(
    self,
    kind: str,
    params: Tree,
    positions: np.ndarray,
    *,
    heads: int,
    epsilon: float,
    dtype: str,
  ):
    """Takes over our parameters.

    Args:
      kind: "cross", "self" or "bert".
      params: ours.
      positions: `[N, P]`, what cross attention reads beside each token.
      heads: of attention.
      epsilon: of the Perceiver's LayerNorm.
      dtype: "float32", or "bfloat16" by autocast.
    """
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    self.kind, self.heads, self.dtype = kind, heads, dtype
    self.params = self._tensors(params)
    self.positions = torch.from_numpy(positions).to(self.device)
    self._epsilon = epsilon
    self._leaves = [*_leaves(self.params)]
    self._run = torch.compile(self._read) if self.device == "cuda" else self._read

  def _tensors(self, tree: Tree) -> Tree:
    found: Tree = {}
    for name, value in tree.items():
      if isinstance(value, Mapping):
        found[name] = self._tensors(dict(value))
        continue
      array = np.array(value, np.float32)
      if name == "kernel":  # PyTorch keeps a linear map's matrix the other way round.
        name, array = "weight", np.ascontiguousarray(array.T)
      found[name] = torch.from_numpy(array).to(self.device).requires_grad_()
    return found

  def features(self, array: np.ndarray) -> Any:
    """A feature map on the peer's device, to differentiate by."""
    return torch.from_numpy(array).to(self.device).requires_grad_()

  def forward(self, features: Any) -> Any:
    """What the block gives for a feature map `[B, T', H', W', C]`."""
    low = self.dtype == "bfloat16"
    with torch.autocast(self.device, torch.bfloat16, enabled=low):
      return self._run(features)

  def infer(self, features: Any) -> Any:
    """The same without gradients."""
    with torch.inference_mode():
      out = self.forward(features)
    self._wait()
    return out

  def train(self, features: Any) -> Any:
    """The gradients of all parameters and of the feature map that take part."""
    loss = self.forward(features).float().square().mean()
    found = torch.autograd.grad(loss, [*self._leaves, features])
    self._wait()
    return found

  def _wait(self) -> None:
    if self.device == "cuda":
      torch.cuda.synchronize()

  def _read(self, features: Any) -> Any:
    params, batch = self.params, len(features)
    if self.kind == "bert":
      return self._bert(features.mean((2, 3)))
    tokens = features.flatten(1, 3)
    if self.kind == "self":
      return self._block(tokens, None, params["self_attention"]["0"])
    tokens = torch.cat([tokens, self.positions.expand(batch, -1, -1)], dim=-1)
    latents = params["latents"].expand(batch, -1, -1)
    return self._block(latents, tokens, params["cross"]["0"])

  def _block(self, x: Any, tokens: Any, params: Tree) -> Any:
    normed = self._norm(x, params["norm"])
    context = normed if tokens is None else self._norm(tokens, params["norm_tokens"])
    inner = params["attention"]
    query = self._linear(normed, inner["to_q"])
    key, value = self._linear(context, inner["to_kv"]).chunk(2, dim=-1)
    x = x + self._linear(self._attend(query, key, value), inner["to_out"])
    widened = self._linear(
      self._norm(x, params["feed_forward"]["norm"]), params["feed_forward"]["expand"]
    )
    value, gate = widened.chunk(2, dim=-1)
    return x + self._linear(value * F.gelu(gate), params["feed_forward"]["contract"])

  def _bert(self, tokens: Any) -> Any:
    params, batch = self.params, len(tokens)
    x = torch.cat([params["cls"].expand(batch, -1, -1), tokens], dim=1)
    x = x + params["positions"][: x.shape[1]]
    normed, inner = self._bert_norm(x, params["norm1"]), params["self_attention"]
    query, key, value = (self._linear(normed, inner[name]) for name in ("to_q", "to_k", "to_v"))
    x = x + self._linear(self._attend(query, key, value), inner["to_out"])
    hidden = self._linear(self._bert_norm(x, params["norm2"]), params["expand"])
    hidden = F.gelu(hidden, approximate="tanh")
    return (x + self._linear(hidden, params["contract"]))[:, 0]

  def _attend(self, *projected: Any) -> Any:
    split = [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

  @staticmethod
  def _linear(x: Any, params: Tree) -> Any:
    return F.linear(x, params["weight"], params.get("bias"))

  def _norm(self, x: Any, params: Tree) -> Any:
    return F.layer_norm(x, x.shape[-1:], params["scale"], params["bias"], self._epsilon)

  @staticmethod
  def _bert_norm(x: Any, params: Tree) -> Any:
    std = x.std(-1, correction=1, keepdim=True)
    return params["scale"] * (x - x.mean(-1, keepdim=True)) / (std + 1e-6) + params["bias"]


def _leaves(tree: Tree) -> Any:
  for value in tree.values():
    if isinstance(value, dict):
      yield from _leaves(value)
    else:
      yield value
