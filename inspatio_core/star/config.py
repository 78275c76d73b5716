"""One dataclass says all that a STAR network and its rollout depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from inspatio_core.errors import InputError

PATCH = 2  # latent pixels along a side of one token
LATENT_CHANNELS = 16
MASK_CHANNELS = 4  # the four frames of a latent
PIXELS = 8  # frame pixels along a side of one latent pixel, with either autoencoder


@dataclass(frozen=True)
class StarConfig:
    """Sizes of the network (section 3.2 of the paper; the released 1.3B has the defaults) and how it is rolled out.

    Attributes:
        dim: width D. num_heads: attention heads; D / num_heads must be even. num_layers, ffn_dim.
        freq_dim: width of the sinusoidal embedding of the timestep.
        text: whether there is cross attention to a prompt. text_dim, text_len: width and rows of prompt features.
        in_dim: channels that go in: 16 latent, 4 mask, 16 render. A network of 16 has no anchor (the T2V base model).
        out_dim: channels that come out.
        eps: of all norms.
        latents_per_block: n. Reference at temporal positions 0..n-1, last prediction n..2n-1, block 2n..3n-1.
        steps: requested timesteps of the sampler, falling, in [0, 1000]; warp: whether they are places in the shifted
            table (the released list) or timesteps themselves; shift: of the flow-matching schedule.
        fill: whether the render channels get the anchor with its holes filled, or black where nothing is known.
        codec: ``wan`` or ``tae``, the autoencoder the latents belong to; codec_width: of a smaller one, None for full.
    """

    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    freq_dim: int = 256
    text: bool = True
    text_dim: int = 4096
    text_len: int = 512
    in_dim: int = 2 * LATENT_CHANNELS + MASK_CHANNELS
    out_dim: int = LATENT_CHANNELS
    eps: float = 1e-6
    latents_per_block: int = 3
    steps: tuple[float, ...] = (1000, 750, 500, 250)
    warp: bool = True
    shift: float = 5.0
    fill: bool = False
    codec: str = "wan"
    codec_width: int | None = None

    def __post_init__(self):
        for name in ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim", "text_len", "in_dim",
                     "out_dim", "latents_per_block", "codec_width"):  # fmt: skip
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and not (name == "codec_width" and value is None):
                raise InputError(f"{name}: {value!r} is not a positive whole number")
        for name in ("eps", "shift"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise InputError(f"{name}: {value!r} is not a positive number")
        for name in ("text", "warp", "fill"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name}: {getattr(self, name)!r} is neither true nor false")
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise InputError(
                f"dim, num_heads: {self.dim} / {self.num_heads} is not an even width per head of at least 6"
            )
        if self.freq_dim % 2:
            raise InputError(f"freq_dim: {self.freq_dim} is not even")
        if self.in_dim not in (LATENT_CHANNELS, 2 * LATENT_CHANNELS + MASK_CHANNELS):
            raise InputError(f"in_dim: {self.in_dim} is neither 16 (no anchor) nor 36 (latent, mask, render)")
        if self.out_dim != LATENT_CHANNELS:
            raise InputError(f"out_dim: {self.out_dim} is not {LATENT_CHANNELS}, the channels of a latent")
        try:
            object.__setattr__(self, "steps", tuple(float(s) for s in self.steps))
        except (TypeError, ValueError):
            raise InputError(f"steps: {self.steps!r} is not a list of timesteps") from None
        falling = all(a > b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or not falling or not (0 <= self.steps[-1] and self.steps[0] <= 1000):
            raise InputError(f"steps: {list(self.steps)} are not falling timesteps in [0, 1000]")
        if self.codec not in ("wan", "tae"):
            raise InputError(f"codec: '{self.codec}' is not one of wan, tae")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def multiple(self) -> int:
        """What height and width of the frames must be multiples of."""
        return PATCH * PIXELS

    def replace(self, **changes: Any) -> StarConfig:
        """This configuration with some fields changed. Raises `InputError` for unknown fields and unusable values."""
        return from_mapping({**asdict(self), **changes})

    def to_json(self) -> str:
        """JSON that `star_config` reads."""
        return json.dumps(asdict(self))


CONFIGS = {
    "1.3b": StarConfig(),
    "14b": StarConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    "tiny": StarConfig(
        dim=128,
        ffn_dim=512,
        num_heads=4,
        num_layers=4,
        freq_dim=64,
        text=False,
        latents_per_block=1,
        codec_width=8,
    ),
}
"""Named sizes: the released one, that of Wan2.1-14B, and a small one without text."""


def from_mapping(values: Mapping[str, Any]) -> StarConfig:
    """A configuration from field names and values; fields left out keep their defaults. Raises `InputError`."""
    known = [f.name for f in fields(StarConfig)]
    if unknown := sorted(set(values) - set(known)):
        raise InputError(f"{', '.join(unknown)}: not a field of a STAR configuration; there are {', '.join(known)}")
    return StarConfig(**values)


def from_json(text: str, where: str | Path) -> StarConfig:
    """A configuration from the JSON of its fields; `where` it stands begins the line of an `InputError`."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not readable as JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{where}: a STAR configuration is an object of fields")
    try:
        return from_mapping(values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def star_config(name: str | Path) -> StarConfig:
    """The configuration called `name` (1.3b, 14b, tiny), or that of a JSON file of fields. Raises `InputError`."""
    if str(name) in CONFIGS:
        return CONFIGS[str(name)]
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"model: '{name}' is neither one of {', '.join(CONFIGS)} nor a JSON file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    return from_json(text, path)
