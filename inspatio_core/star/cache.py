"""Keys and values of the tokens that a block attends to.

Inference writes into a `Workspace` made once: the context at its beginning, the block right behind it, so that what is
attended to is one slice and nothing is ever joined. Training, which needs gradients through the context, and
comparisons use `GrowingCache`, which joins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class InPlace(NamedTuple):
    """One layer's slice of a workspace: keys, values [B, context + S, N, d]; the last S rows are to be written."""

    keys: Tensor
    values: Tensor

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, S, N, d] behind the context; all keys and values to attend to."""
        start = self.keys.shape[1] - k.shape[1]
        self.keys[:, start:].copy_(k)
        self.values[:, start:].copy_(v)
        return self.keys, self.values


class Workspace:
    """Preallocated [context | block] keys and values of every layer for B slots.

    Attributes:
        k, v: [layers, B, 3 n T, N, d] with T tokens a latent frame.
        context: rows at the beginning that hold the context of the block at hand.
    """

    def __init__(self, layers: int, batch: int, tokens: int, heads: int, head_dim: int, device, dtype: torch.dtype):
        shape = (layers, batch, tokens, heads, head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.context = 0
        self._notes: dict[str, object] = {"ticket": None}  # of the memory, so parts share it

    @property
    def ticket(self) -> object:
        """Whatever its user notes about what the context belongs to; None once that is uncertain."""
        return self._notes["ticket"]

    @ticket.setter
    def ticket(self, ticket: object) -> None:
        self._notes["ticket"] = ticket

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return self.k.nbytes + self.v.nbytes

    def part(self, rows: slice) -> Workspace:
        """Some slots on the same memory and with its ticket, but a context count of their own: keep it."""
        part = object.__new__(Workspace)
        part.k, part.v = self.k[:, rows], self.v[:, rows]
        part.context, part._notes = self.context, self._notes
        return part

    def slot(self, row: int) -> Workspace:
        """The part of one slot."""
        return self.part(slice(row, row + 1))

    def begin_context(self, tokens: int) -> None:
        """The next `layer` slices are for the context, `tokens` rows of it."""
        self.context = tokens

    def context_layer(self, layer: int) -> InPlace:
        """Where a layer's context goes."""
        return InPlace(self.k[layer, :, : self.context], self.v[layer, :, : self.context])

    def block_layer(self, layer: int, tokens: int) -> InPlace:
        """A layer's context with room for the block's own `tokens` rows behind it."""
        stop = self.context + tokens
        return InPlace(self.k[layer, :, :stop], self.v[layer, :, :stop])


class _Joined:
    def __init__(self, store: dict[int, tuple[Tensor, Tensor]], layer: int, keep: bool):
        self.store, self.layer, self.keep = store, layer, keep

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.keep:
            self.store[self.layer] = (k, v)
            return k, v
        keys, values = self.store[self.layer]
        return torch.cat([keys, k], 1), torch.cat([values, v], 1)


class GrowingCache:
    """The plain counterpart of `Workspace`: nothing in place, gradients flow into the context."""

    def __init__(self):
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.context = 0

    def begin_context(self, tokens: int) -> None:
        """Forget the last context; `tokens` rows come."""
        self._layers.clear()
        self.context = tokens

    def context_layer(self, layer: int) -> _Joined:
        """Keeps what it is extended by."""
        return _Joined(self._layers, layer, keep=True)

    def block_layer(self, layer: int, tokens: int) -> _Joined:
        """Joins the kept context and what it is extended by."""
        return _Joined(self._layers, layer, keep=False)
