"""TAEHV, the tiny video autoencoder (`taew2_1`) that works in the latent space of Wan 2.1.

2-D convolutions with a memory of one frame: every memory block also sees its own input of one frame ago. 11.3 M
parameters; about 1/30 of the operations of the Wan autoencoder. Latent i is encoded from frames 4i .. 4i + 3 and
decodes to frames 4i - 3 .. 4i, so that the encoder runs 3 frames ahead.

Inside, images are [B*T, C, H, W] in channels-last order (a third faster than the usual order on a CPU, and what tensor
cores read), and memories [B, H, W, C].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspatio_core.codecs import stream
from inspatio_core.codecs.stream import Codec, State
from inspatio_core.errors import InputError

Widths = tuple[int, tuple[int, int, int, int]]

KIND = "tae"  # of file, see `inspatio_core.checkpoints`
FULL: Widths = (64, (256, 128, 64, 64))  # the released widths
POOL = (2, 2, 1)  # consecutive frames merged into one by the encoder's stages
GROW = (1, 2, 2)  # frames made of one by the decoder's stages


def widths(width: int | Widths | None) -> Widths:
    """(encoder width, four decoder widths): given as that, as the encoder's alone, or None for the released ones."""
    if width is None:
        return FULL
    if isinstance(width, int):
        width = (width, (4 * width, 2 * width, width, width))
    encoder, decoder = width
    if len(decoder) != 4 or min(encoder, *decoder) < 1:
        raise InputError(f"tae: expected an encoder width and four decoder widths, got {width}")
    return encoder, tuple(decoder)


def conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    """3x3, padded."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def as_frames(images: Tensor, batch: int) -> Tensor:
    """[B*T,C,H,W] -> a view [B,T,H,W,C]."""
    return images.permute(0, 2, 3, 1).unflatten(0, (batch, -1))


def as_images(frames: Tensor) -> Tensor:
    """[B,T,H,W,C] -> [B*T,C,H,W] in channels-last order."""
    return frames.flatten(0, 1).permute(0, 3, 1, 2)


class MemoryBlock(nn.Module):
    """Residual block of three convolutions that sees its input, and its input one frame ago (zeros at the start)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        )  # fmt: skip

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """x [B*T,C,H,W], memory [B,H,W,C] = the input before x -> (output like x, the last input)."""
        frames = as_frames(x, len(memory))
        past = torch.cat([memory[:, None], frames[:, :-1]], 1)
        out = F.relu(self.conv(as_images(torch.cat([frames, past], -1))) + x)
        return out, frames[:, -1].clone()  # a copy, not a view of all frames


class TimePool(nn.Module):
    """`stride` consecutive frames become one: concatenated over channels, earliest first, then mixed by a 1x1."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * width, width, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """[B*T,C,H,W] -> [B*T/stride,C,H,W]."""
        groups = as_frames(x, batch).unflatten(1, (-1, self.stride))
        return self.conv(as_images(groups.permute(0, 1, 3, 4, 2, 5).flatten(4)))


class TimeGrow(nn.Module):
    """One frame becomes `stride` consecutive ones: groups of channels of a 1x1."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, stride * width, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """[B*T,C,H,W] -> [B*T*stride,C,H,W]."""
        groups = as_frames(self.conv(x), batch).unflatten(4, (self.stride, -1))
        return as_images(groups.permute(0, 1, 4, 2, 3, 5).flatten(1, 2))


class Taehv(nn.Module):
    """The network, on images in [0, 1]. Its state dict has the names of the released file."""

    def __init__(self, encoder_width: int, decoder_widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        width, stages = encoder_width, decoder_widths
        encoder: list[nn.Module] = [conv(3, width), nn.ReLU()]
        for stride in POOL:
            encoder += [TimePool(width, stride), conv(width, width, stride=2, bias=False)]
            encoder += [MemoryBlock(width) for _ in range(3)]
        self.encoder = nn.ModuleList([*encoder, conv(width, 16)])
        # The first entry stands for the squashing of the latents, which has no weights but a number in the names.
        decoder: list[nn.Module] = [nn.Identity(), conv(16, stages[0]), nn.ReLU()]
        for inputs, outputs, stride in zip(stages[:-1], stages[1:], GROW):
            decoder += [MemoryBlock(inputs) for _ in range(3)]
            decoder += [nn.Upsample(scale_factor=2), TimeGrow(inputs, stride), conv(inputs, outputs, bias=False)]
        self.decoder = nn.ModuleList([*decoder, nn.ReLU(), conv(stages[3], 3)])

    def encode(self, frames: Tensor, memory: State) -> tuple[Tensor, State]:
        """Frames [B,4m,3,H,W] in [0,1], memory [9 x [B,h,w,C]] -> (latents [B,m,16,H/8,W/8], new memory)."""
        x, memory = self._through(self.encoder, frames.flatten(0, 1), memory)
        return x.unflatten(0, (len(frames), -1)), memory

    def decode(self, latents: Tensor, memory: State) -> tuple[Tensor, State]:
        """Latents [B,m,16,h,w], memory [9 x [B,h,w,C]] -> (frames [B,4m,3,8h,8w], not clamped, new memory)."""
        x = torch.tanh(latents.flatten(0, 1) / 3) * 3
        x, memory = self._through(self.decoder, x, memory)
        return x.unflatten(0, (len(latents), -1)), memory

    @staticmethod
    def _through(layers: nn.ModuleList, x: Tensor, memory: State) -> tuple[Tensor, State]:
        batch, old, new = len(memory[0]), iter(memory), []
        upsample = None
        for layer in layers:
            if isinstance(layer, MemoryBlock):
                x, last = layer(x, next(old))
                new.append(last)
            elif isinstance(layer, nn.Upsample):
                upsample = layer  # deferred: the 1x1 of the growth that follows costs a quarter at the small size
            elif isinstance(layer, TimeGrow):
                x = upsample(layer(x, batch))
            elif isinstance(layer, TimePool):
                x = layer(x, batch)
            else:
                x = layer(x)
        return x, tuple(new)


def shapes(width: int | Widths | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, as in the released file."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in Taehv(*widths(width)).state_dict().items()}


def random_weights(width: int | Widths | None, seed: int) -> dict[str, Tensor]:
    """Weights drawn at random, of a codec whose output depends on its input and mostly stays within bounds."""
    weights = stream.random_weights(shapes(width), seed)
    weights["encoder.17.weight"] *= 4  # latents about as wide as real ones
    weights["decoder.22.bias"] += 0.5  # pictures around grey
    return weights


class TaeCodec(Codec):
    """TAEHV as a codec.

    Args:
        weights: by the names of the released file.
        width: of the network, see `widths`.
    """

    name = "tae"
    look_ahead = 3
    first_frames = 4

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        width: int | Widths | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.widths = widths(width)
        with torch.device("meta"):
            self.module = Taehv(*self.widths)
        stream.load_weights(self.module, weights, device=device, dtype=dtype)
        self.module.to(memory_format=torch.channels_last)

    def encoder_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """See `Codec.encoder_shapes`."""
        return [(height // s, width // s, self.widths[0]) for s in (2, 4, 8) for _ in range(3)]

    def decoder_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """See `Codec.decoder_shapes`."""
        return [(height // s, width // s, w) for s, w in zip((8, 4, 2), self.widths[1]) for _ in range(3)]

    def encode_step(self, frames: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See `Codec.encode_step`."""
        # Scaled before the cast: near -1 and 1, half precision is coarser than it is near 0.
        frames = ((frames + 1) / 2).to(self.dtype)
        if state is None:
            state = self._zeros(frames, self.encoder_shapes(*frames.shape[-2:]))
        latents, state = self.module.encode(frames, state)
        return latents.to(torch.promote_types(self.dtype, torch.float32)), state

    def decode_step(self, latent: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See `Codec.decode_step`."""
        fresh = state is None
        latent = latent.to(self.dtype)
        if fresh:
            height, width = latent.shape[-2:]
            state = self._zeros(latent, self.decoder_shapes(8 * height, 8 * width))
        frames, state = self.module.decode(latent, state)
        frames = frames.to(torch.promote_types(self.dtype, torch.float32)) * 2 - 1
        return frames[:, 3:] if fresh else frames, state

    @staticmethod
    def _zeros(like: Tensor, shapes: list[tuple[int, ...]]) -> State:
        return tuple(like.new_zeros(len(like), *shape) for shape in shapes)
