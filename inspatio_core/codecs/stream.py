"""What both codecs share: streams of frames and of latents, whose states are values.

A codec turns RGB frames into latent frames and back, one *latent step* at a time, remembering what came before.
Latent frame 0 of a stream decodes to 1 frame, every later one to 4.

- Frames are [B, F, 3, H, W] in [-1, 1], H and W multiples of 8.
- Latents are [B, f, 16, H/8, W/8] in the normalised Wan latent space.
- A state is what one stream remembers: None for a fresh stream, else a tuple of tensors with a leading 1. It is never
  changed in place, so that it can be kept, copied, pickled and taken up again at will. Encoder and decoder states
  are separate values.

Whole clips run the very steps of a stream, and on the CPU every stream runs by itself, because the results of a
convolution there depend on its batch size: streaming equals the whole clip, and a batch its singles, byte for byte.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from inspatio_core.errors import InputError

State = tuple[Tensor, ...]
Step = Callable[[Tensor, "State | None"], "tuple[Tensor, State]"]


class Codec:
    """Encoder and decoder of one kind.

    A codec supplies ``encode_step``, ``decode_step`` and the shapes of its states; the calls below run them over
    streams and clips without gradients. For gradients (training) call the steps themselves.

    Attributes:
        name: "wan" or "tae".
        look_ahead: frames the encoder needs beyond the last frame that a latent stands for.
        first_frames: frames that the first latent of a stream takes to encode; every later one takes 4.
        module: the network, frozen and in eval mode.
        latent_channels: 16.
    """

    name: str
    look_ahead: int
    first_frames: int
    latent_channels = 16
    module: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the weights are; frames and latents are moved there."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in. Frames and latents come back as float32 whichever."""
        return next(self.module.parameters()).dtype

    @property
    def one_by_one(self) -> bool:
        """Whether streams run one after the other rather than as a batch: on the CPU, for equal bytes."""
        return self.device.type == "cpu"

    def encode_step(self, frames: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Frames of one latent [B,first_frames or 4,3,H,W] -> (latent [B,1,16,h,w], new state). Differentiable."""
        raise NotImplementedError

    def decode_step(self, latent: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One latent [B,1,16,h,w] -> (its frames [B,1 or 4,3,H,W], not clamped, new state). Differentiable."""
        raise NotImplementedError

    def encoder_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Shapes of an encoder state's tensors at a size in pixels, without the leading 1."""
        raise NotImplementedError

    def decoder_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Shapes of a decoder state's tensors at a size in pixels, without the leading 1."""
        raise NotImplementedError

    def encoder_state(self) -> State | None:
        """State of an encoder stream that has seen nothing."""
        return None

    def decoder_state(self) -> State | None:
        """State of a decoder stream that has seen nothing."""
        return None

    @torch.no_grad()
    def encode(self, frames: Tensor, states: Sequence[State | None]) -> tuple[Tensor, list[State]]:
        """Continue B encoder streams by the same number of frames.

        Args:
            frames: [B,F,3,H,W] in [-1,1]. A fresh stream takes F = first_frames + 4m, a running one 4m.
            states: one a stream.

        Returns:
            Latents [B,f,16,H/8,W/8] float32, and the new states.

        Raises:
            InputError: wrong shape, a frame count that does not fit, or a state of another size.
        """
        size = self._check(frames, states, "encoder", "frames [B,F,3,H,W]", 3, 8)
        count, fresh = frames.shape[1], [state is None for state in states]
        if any(fresh) and not all(fresh) and self.first_frames != 4:
            raise InputError(f"{self.name} encoder: fresh and running streams take different numbers of frames")
        first = self.first_frames if all(fresh) else 4
        if count < first or (count - first) % 4:
            raise InputError(
                f"{self.name} encoder: a {'fresh' if all(fresh) else 'running'} stream takes "
                f"{f'{first} + 4m' if first != 4 else '4m (m >= 1)'} frames, not {count}"
            )
        return self._run(self.encode_step, frames, states, [first] + [4] * ((count - first) // 4), size, "encoder")

    @torch.no_grad()
    def decode(self, latents: Tensor, states: Sequence[State | None]) -> tuple[Tensor, list[State]]:
        """Continue B decoder streams by f latents each.

        Args:
            latents: [B,f,16,h,w].
            states: one a stream; all fresh, or none.

        Returns:
            Frames [B,F,3,8h,8w] float32 in [-1,1], F = 4f - 3 for fresh streams and 4f for others; the new states.

        Raises:
            InputError: wrong shape, fresh and running streams in one call, or a state of another size.
        """
        size = self._check(latents, states, "decoder", "latents [B,f,16,h,w]", self.latent_channels, 1)
        if len({state is None for state in states}) > 1:
            raise InputError(f"{self.name} decoder: fresh and running streams give different numbers of frames")
        frames, new = self._run(self.decode_step, latents, states, [1] * latents.shape[1], size, "decoder")
        return frames.clamp_(-1, 1), new

    def encode_clip(self, video: Tensor) -> Tensor:
        """Whole clips [B,T,3,H,W] -> latents [B,1+(T-1)//4,16,H/8,W/8].

        What does not fill a group of four is dropped (wan), or filled up by repeating the last frame (tae).
        """
        if video.dim() != 5 or video.shape[1] < 1:
            raise InputError(f"{self.name} encoder: expected frames [B,T,3,H,W], got {tuple(video.shape)}")
        rest = (video.shape[1] - self.first_frames) % 4
        if rest and self.first_frames == 4:
            video = torch.cat([video, video[:, -1:].expand(-1, 4 - rest, -1, -1, -1)], 1)
        elif rest:
            video = video[:, :-rest]
        return self.encode(video, [None] * video.shape[0])[0]

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Whole clips of latents [B,f,16,h,w] -> frames [B,4f-3,3,8h,8w] in [-1,1]."""
        return self.decode(latents, [None] * len(latents))[0]

    def _check(
        self, x: Tensor, states: Sequence[State | None], part: str, what: str, channels: int, multiple: int
    ) -> tuple[int, int]:
        """Raise InputError unless x and the states fit together; the size in pixels."""
        shape = tuple(x.shape)
        if x.dim() != 5 or 0 in shape or shape[2] != channels or not x.is_floating_point():
            raise InputError(f"{self.name} {part}: expected floating-point {what}, got {x.dtype} {shape}")
        if shape[3] % multiple or shape[4] % multiple:
            raise InputError(f"{self.name} {part}: height and width must be multiples of {multiple}, got {shape[3:]}")
        if len(states) != shape[0]:
            raise InputError(f"{self.name} {part}: {len(states)} states for a batch of {shape[0]}")
        size = (shape[3], shape[4]) if part == "encoder" else (8 * shape[3], 8 * shape[4])
        expected = [((1, *s), self.dtype) for s in self._shapes(part, size)]
        for i, state in enumerate(states):
            if state is not None and [(tuple(t.shape), t.dtype) for t in state] != expected:
                kind = str(self.dtype).removeprefix("torch.")
                raise InputError(
                    f"{self.name} {part}: state {i} of the batch is not of a {kind} stream of {size[0]}x{size[1]}; a "
                    "stream that changes its size must be reset"
                )
        return size

    def _shapes(self, part: str, size: tuple[int, int]) -> list[tuple[int, ...]]:
        return self.encoder_shapes(*size) if part == "encoder" else self.decoder_shapes(*size)

    def _run(
        self, step: Step, x: Tensor, states: Sequence[State | None], counts: list[int], size: tuple[int, int], part: str
    ) -> tuple[Tensor, list[State]]:
        """Apply `step` to x, `counts` frames at a time: stream by stream on the CPU, else all streams at once."""
        x = x.to(self.device)
        if self.one_by_one and len(states) > 1:
            outs, news = zip(*(self._run(step, x[i : i + 1], [s], counts, size, part) for i, s in enumerate(states)))
            return torch.cat(outs), [new[0] for new in news]
        state = states[0]
        if len(states) > 1 and any(s is not None for s in states):
            zeros = None
            if any(s is None for s in states):  # of the encoder that starts from zeros, see encode()
                shapes = self._shapes(part, size)
                zeros = tuple(torch.zeros(1, *s, dtype=self.dtype, device=self.device) for s in shapes)
            state = tuple(torch.cat(parts) for parts in zip(*(zeros if s is None else s for s in states)))
        outs = []
        for chunk in x.split(counts, 1):
            out, state = step(chunk, state)
            outs.append(out)
        # A stream's state must not keep the memory of the whole batch alive, hence the copies.
        news = [state] if len(states) == 1 else [tuple(t[i : i + 1].clone() for t in state) for i in range(len(states))]
        return torch.cat(outs, 1), news


class _Streams:
    """The states of some numbered streams."""

    part: str

    def __init__(self, codec: Codec, slots: int = 1) -> None:
        if slots < 1:
            raise InputError(f"a stream {self.part} needs at least 1 slot, not {slots}")
        self.codec = codec
        self._states: list[State | None] = [None] * slots

    def __len__(self) -> int:
        return len(self._states)

    def reset(self, slots: int | Sequence[int] | None = None) -> None:
        """Make these slots fresh (None: all); the others are as they were."""
        for slot in self._indices(slots):
            self._states[slot] = None

    def state(self, slot: int) -> State | None:
        """What a slot remembers, a value; None for a fresh one."""
        return self._states[self._indices(slot)[0]]

    def load_state(self, slot: int, state: State | None) -> None:
        """Let a slot go on from a state got earlier, on any device."""
        index = self._indices(slot)[0]
        self._states[index] = None if state is None else tuple(t.to(self.codec.device) for t in state)

    def _indices(self, slots: int | Sequence[int] | None) -> list[int]:
        chosen = range(len(self)) if slots is None else slots if isinstance(slots, Iterable) else [slots]
        indices = [int(slot) for slot in chosen]
        if len(set(indices)) != len(indices) or not all(0 <= i < len(self) for i in indices):
            raise InputError(f"slots {indices}: expected different ones of 0 .. {len(self) - 1}")
        return indices

    def _push(self, run: Callable, x: Tensor, slots: int | Sequence[int] | None) -> Tensor:
        indices = self._indices(slots)
        out, states = run(x, [self._states[i] for i in indices])
        for index, state in zip(indices, states):
            self._states[index] = state
        return out


class StreamEncoder(_Streams):
    """Encodes `slots` independent streams of frames.

    ::

        encoder = StreamEncoder(codec, slots=4)
        latents = encoder.push(frames)                # frames [4,F,3,H,W] -> [4,f,16,h,w]
        latents = encoder.push(frames, slots=[0, 2])  # frames [2,F,3,H,W]; slots 1 and 3 stay as they are
    """

    part = "encoder"

    def push(self, frames: Tensor, slots: int | Sequence[int] | None = None) -> Tensor:
        """The next frames [n,F,3,H,W] of n slots (None: all) -> latents [n,f,16,h,w]; see `Codec.encode`.

        Nothing changes where this raises InputError.
        """
        return self._push(self.codec.encode, frames, slots)


class StreamDecoder(_Streams):
    """Decodes `slots` independent streams of latents; used like `StreamEncoder`."""

    part = "decoder"

    def push(self, latents: Tensor, slots: int | Sequence[int] | None = None) -> Tensor:
        """The next latents [n,f,16,h,w] of n slots (None: all) -> frames [n,F,3,8h,8w]; see `Codec.decode`.

        Nothing changes where this raises InputError.
        """
        return self._push(self.codec.decode, latents, slots)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], **to: object) -> None:
    """Give a module that was built on the meta device its weights, each moved and cast by ``Tensor.to(**to)``.

    It ends up frozen and in eval mode.
    """
    module.load_state_dict({key: value.to(**to) for key, value in weights.items()}, assign=True)
    module.requires_grad_(False).eval()


def random_weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Weights drawn at random by name and seed alone, such that activations keep their size from layer to layer."""
    weights = {}
    for key, shape in shapes.items():
        if key.endswith("gamma"):
            weights[key] = torch.ones(shape)
        elif key.endswith("bias"):
            weights[key] = torch.zeros(shape)
        else:
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) ^ (seed & 0xFFFFFFFF))
            weights[key] = torch.randn(tuple(shape), generator=generator) / math.prod(shape[1:]) ** 0.5
    return weights
