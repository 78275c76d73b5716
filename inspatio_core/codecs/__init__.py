"""Codecs turn frames into latent frames and back, as streams or whole clips.

==== ====================================== ========== =====================================
kind network                                look-ahead frames of a stream's latents 0, 1, ...
==== ====================================== ========== =====================================
wan  the autoencoder of Wan 2.1             0          1, 4, 4, ... both ways
tae  TAEHV, tiny, for the same latent space 3          4, 4, 4, ... in and 1, 4, 4, ... out
==== ====================================== ========== =====================================
"""

from __future__ import annotations

from pathlib import Path

import torch

from inspatio_core.codecs.stream import Codec, State, StreamDecoder, StreamEncoder
from inspatio_core.errors import InputError

__all__ = ["Codec", "State", "StreamDecoder", "StreamEncoder", "make_codec"]


def make_codec(
    kind: str,
    *,
    width: int | tuple | None = None,
    path: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    compatible: bool = False,
) -> Codec:
    """A codec with weights from a file, or random ones.

    Args:
        kind: "wan" or "tae".
        width: of the network: None for the released one; for "tae" also (encoder width, four decoder widths).
        path: the file of weights. random_weights: draw them instead, by `seed`; torch's own generators stay untouched.
        device, dtype: where and what it computes in.
        compatible: see `WanCodec`; no difference for "tae".

    Raises:
        InputError: unknown kind, not exactly one of path and random_weights, or a file that does not fit.
    """
    if kind == "wan":
        from inspatio_core.codecs import wan_vae as network
    elif kind == "tae":
        from inspatio_core.codecs import taehv as network
    else:
        raise InputError(f"codec {kind!r} is not known; there is: tae, wan")
    if (path is None) == (not random_weights):
        raise InputError(f"codec {kind}: give either a file of weights or ask for random ones")
    if path is None:
        weights = network.random_weights(width, seed)
    else:
        from inspatio_core import checkpoints

        weights = checkpoints.read_state_dict(path, network.KIND, shapes=network.shapes(width))
    options = {"width": width, "device": device, "dtype": dtype}
    if kind == "wan":
        return network.WanCodec(weights, compatible=compatible, **options)
    return network.TaeCodec(weights, **options)
