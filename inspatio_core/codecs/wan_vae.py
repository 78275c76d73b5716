"""The autoencoder of Wan 2.1, over the modules of diffusers' `AutoencoderKLWan`.

Causal 3-D convolutions that remember the two frames before their input. Frame 0 of a stream is encoded alone, then
frames go four by four; latents are decoded one by one. What the layers remember is passed in and out here, so that
encoder and decoder streams are values of their own.

diffusers is imported when a codec is built, not before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inspatio_core import checkpoints
from inspatio_core.codecs import stream
from inspatio_core.codecs.stream import Codec, State
from inspatio_core.errors import InputError

KIND = "wan-vae"  # of file, see `inspatio_core.checkpoints`
FULL = 96  # the released width

# Wan 2.1: mean and standard deviation of the latents' 16 channels.
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def _network(width: int | None) -> nn.Module:
    """The network on the meta device, without weights."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    width = FULL if width is None else width
    if width < 1:
        raise InputError(f"wan: the width must be at least 1, not {width}")
    with torch.device("meta"):
        return AutoencoderKLWan(base_dim=width)


def _names() -> dict[str, str]:
    """A weight's name in `AutoencoderKLWan` -> its name in `Wan2.1_VAE.pth`."""
    return checkpoints.renamed({key: key for key in checkpoints.shapes_of(KIND)}, KIND)


def shapes(width: int | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, as in `Wan2.1_VAE.pth`."""
    state = _network(width).state_dict()
    return {key: tuple(state[name].shape) for name, key in _names().items()}


def random_weights(width: int | None, seed: int) -> dict[str, Tensor]:
    """Weights drawn at random, of a codec whose output depends on its input and mostly stays within bounds."""
    return stream.random_weights(shapes(width), seed)


def _memories(network: nn.Module, scale: int) -> list[tuple[int, int, int]]:
    """What the layers of an encoder (scale 1) or decoder (scale 8) remember, in the order in which they run.

    (channels, frames, how many times smaller than the picture).
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample

    memories = []
    for name, layer in network.named_modules():
        if isinstance(layer, WanResample):
            down = layer.mode.startswith("downsample")
            scale = 2 * scale if down else scale
            if layer.mode.endswith("3d"):  # in time: halving looks back by one frame only, doubling by two
                memories.append((layer.dim, 1 if down else 2, scale))
            scale = scale if down else scale // 2
        elif isinstance(layer, WanCausalConv3d) and not name.endswith(("time_conv", "conv_shortcut")):
            memories.append((layer.in_channels, 2, scale))
    return memories


class WanCodec(Codec):
    """The Wan 2.1 autoencoder as a codec. The latent of a frame is the mean of its distribution, normalised.

    Args:
        weights: by the names of `Wan2.1_VAE.pth`.
        width: of the network's first layer; None for the released 96.
        compatible: decode as the released InSpatio-World code does: in the decoder's first doubling in time, the
            frame before the last is taken to be the last one (zeros stay zeros). The frames from the tenth on differ
            from what Wan 2.1 was trained to give.
    """

    name = "wan"
    look_ahead = 0
    first_frames = 1

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        width: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compatible: bool = False,
    ) -> None:
        self.module = _network(width)
        stream.load_weights(self.module, checkpoints.renamed(weights, KIND), device=device, dtype=dtype)
        self.compatible = compatible
        self._encoder_memories = _memories(self.module.encoder, 1)
        self._decoder_memories = _memories(self.module.decoder, 8)
        # The decoder's first doubling in time comes after its first convolution, its middle and its first three blocks.
        self._first_doubling = 1 + 2 * 2 + 2 * 3
        wide = torch.promote_types(dtype, torch.float32)
        self._mean = torch.tensor(MEAN, dtype=wide, device=device).view(1, 1, -1, 1, 1)
        self._std = torch.tensor(STD, dtype=wide, device=device).view(1, 1, -1, 1, 1)

    def encoder_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """See `Codec.encoder_shapes`."""
        return [(c, t, height // s, width // s) for c, t, s in self._encoder_memories]

    def decoder_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """See `Codec.decoder_shapes`."""
        return [(c, t, height // s, width // s) for c, t, s in self._decoder_memories]

    def encode_step(self, frames: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See `Codec.encode_step`."""
        x = frames.to(self.dtype).transpose(1, 2).contiguous()
        memory: list = [None] * len(self._encoder_memories) if state is None else list(state)
        x = self.module.quant_conv(self.module.encoder(x, feat_cache=memory, feat_idx=[0]))
        mean = x[:, : self.latent_channels].transpose(1, 2).to(self._mean.dtype)
        return (mean - self._mean) / self._std, _complete(memory, self.encoder_shapes(*frames.shape[-2:]), x)

    def decode_step(self, latent: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See `Codec.decode_step`."""
        height, width = latent.shape[-2:]
        z = (latent.to(self._mean.dtype) * self._std + self._mean).to(self.dtype).transpose(1, 2).contiguous()
        memory: list = [None] * len(self._decoder_memories) if state is None else list(state)
        x = self.module.decoder(self.module.post_quant_conv(z), feat_cache=memory, feat_idx=[0])
        if self.compatible and state is not None:
            last = memory[self._first_doubling][:, :, 1:]
            before = torch.where(state[self._first_doubling][:, :, 1:] == 0, 0, last)
            memory[self._first_doubling] = torch.cat([before, last], 2)
        memory = _complete(memory, self.decoder_shapes(8 * height, 8 * width), x)
        return x.transpose(1, 2).to(self._mean.dtype), memory


def _complete(memory: list, shapes: list[tuple[int, ...]], like: Tensor) -> State:
    """What the layers remember after a step, with the zeros that they leave unsaid after the first one.

    After a stream's first step diffusers has one frame where later there are two, and marks a doubling in time that
    has not seen a frame yet by a string. Zeros mean the same to every layer, and give all later steps one form.
    """
    state = []
    for tensor, (channels, frames, height, width) in zip(memory, shapes):
        if not isinstance(tensor, Tensor):
            tensor = like.new_zeros(len(like), channels, frames, height, width)
        elif tensor.shape[2] < frames:
            tensor = torch.cat([torch.zeros_like(tensor), tensor], 2)
        state.append(tensor)
    return tuple(state)
