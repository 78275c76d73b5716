"""Every parameter of ``world_node``: declared with a descriptor, read and checked in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from inspatio_core.errors import InputError
from inspatio_core.generators import GeneratorOptions

DEFAULT_SCENE = "courtyard"
LOOPS = ("loop", "bounce", "hold")
PACINGS = ("lockstep", "realtime")
DTYPES = ("auto", "float32", "float16", "bfloat16")
CODECS = ("auto", "wan", "tae")
SHORTEST_SIDE, LONGEST_SIDE = 16, 4096  # pixels


def _p(default, description: str, *, runtime: bool = False, low: float | None = None, high: float | None = None):
    """(default, descriptor): read-only unless ``runtime``; numbers between ``low`` and ``high`` if given."""
    descriptor = ParameterDescriptor(description=description, read_only=not runtime)
    if low is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
    return default, descriptor


PARAMETERS = {
    "video": _p("", "video file, folder of images or one image to drive through; empty: the scene"),
    "scene": _p("", f"scene folder, or the name of a shipped scene; empty with no video: {DEFAULT_SCENE}"),
    "generator": _p("geometric", "what turns geometry into frames: geometric, or star, the diffusion transformer"),
    "checkpoint_path": _p("", "weights of star, a file or a model's folder; empty: where they belong"),
    "model": _p("auto", "size of star: 1.3b, 14b, tiny or a JSON file of its fields; auto: what the weights are of"),
    "codec": _p("auto", f"autoencoder of star: {', '.join(CODECS)}; auto: what the model was made with"),
    "tae_checkpoint_path": _p("", "weights of the tae codec; empty: where they belong"),
    "prompt": _p("", "what the video shows, for models that read text; empty: the reference's caption", runtime=True),
    "random_weights": _p(False, "make the weights up instead of reading any: noise, for tests and measurements"),
    "latents_per_block": _p(0, "latent frames of a block, 4 frames each; 0: the generator's own", low=0, high=64),
    "compile": _p(False, "compile the network before the first frame"),
    "fp8": _p(False, "large products of the network in 8 bits, on GPUs that can"),
    "device": _p("auto", "auto, cpu or cuda:N"),
    "dtype": _p("auto", f"number format of the network: {', '.join(DTYPES)}; auto: bfloat16 on CUDA, else float32"),
    "size": _p("auto", "HEIGHTxWIDTH of the frames, such as 480x832; auto: 480x832, or 832x480 for an upright video"),
    "fps": _p(24.0, "frames per second of sim time", low=0.1, high=1000.0),
    "seed": _p(0, "seed of the generator", low=0, high=2**31 - 1),
    "pacing": _p("lockstep", "when generation is slow: lockstep (sim time slows) or realtime (frames are dropped)"),
    "metres_per_unit": _p(0.0, "scale of references without metric depth; 0: median depth is 3 m", low=0.0, high=1e6),
    "relative_to_source": _p(False, "whether the camera rides on the source camera instead of standing in the world"),
    "memory": _p(True, "whether the point map feeds back into frames"),
    "map_limit": _p(500_000, "most points of the map", low=1, high=50_000_000),
    "stamped": _p(False, "whether cmd_vel is TwistStamped instead of Twist"),
    "frame_prefix": _p("", "put before every frame name as it is, such as 'left/'"),
    "world_frame": _p(
        "auto", "static parent of map that joins several worlds; auto: 'world' if there is a frame_prefix; empty: none"
    ),
    "publish_clock": _p(True, "publish sim time on /clock and stamp with it; else stamps follow the node's clock"),
    "planar": _p(False, "ignore z, roll and pitch of cmd_vel", runtime=True),
    "loop": _p("bounce", f"what the playhead does at the ends: {', '.join(LOOPS)}", runtime=True),
    "cmd_vel_timeout": _p(
        0.5, "seconds of sim time after which a cmd_vel counts for nothing", runtime=True, low=0.01, high=1e6
    ),
    "pose_timeout": _p(
        2.0,
        "seconds that a camera_pose or initialpose waits for tf to know its frame",
        runtime=True,
        low=0.0,
        high=1e6,
    ),
    "max_linear": _p(5.0, "longest linear velocity taken from cmd_vel, m/s", runtime=True, low=0.0, high=1e3),
    "max_angular": _p(3.0, "longest angular velocity taken from cmd_vel, rad/s", runtime=True, low=0.0, high=1e2),
    "jpeg_quality": _p(85, "quality of image_raw/compressed", runtime=True, low=1, high=100),
    "points_rate": _p(6.0, "most camera/points per second of sim time", runtime=True, low=0.01, high=1000.0),
    "map_rate": _p(0.5, "most cloud_map snapshots per second", runtime=True, low=0.001, high=100.0),
    "map_bandwidth": _p(
        8e6, "most bytes per second of cloud_map, and of cloud_map_updates", runtime=True, low=1e3, high=1e10
    ),
}
"""Name: (default, descriptor)."""


@dataclass
class Settings:
    """The values of all parameters, checked. One field a parameter; ``size`` is "auto" or (height, width)."""

    video: str
    scene: str
    generator: str
    checkpoint_path: str
    model: str
    codec: str
    tae_checkpoint_path: str
    prompt: str
    random_weights: bool
    latents_per_block: int
    compile: bool
    fp8: bool
    device: str
    dtype: str
    size: tuple[int, int] | str
    fps: float
    seed: int
    pacing: str
    metres_per_unit: float
    relative_to_source: bool
    memory: bool
    map_limit: int
    stamped: bool
    frame_prefix: str
    world_frame: str
    publish_clock: bool
    planar: bool
    loop: str
    cmd_vel_timeout: float
    pose_timeout: float
    max_linear: float
    max_angular: float
    jpeg_quality: int
    points_rate: float
    map_rate: float
    map_bandwidth: float

    @property
    def source(self) -> tuple[str, str]:
        """(the argument that names it, the path or the shipped scene's name) of what to open."""
        return ("video", self.video) if self.video else ("scene", self.scene or DEFAULT_SCENE)

    @property
    def options(self) -> GeneratorOptions:
        """How to make the generator."""
        return GeneratorOptions(
            checkpoint_path=self.checkpoint_path,
            model=self.model,
            codec=self.codec,
            tae_checkpoint_path=self.tae_checkpoint_path,
            prompt=self.prompt or None,
            random_weights=self.random_weights,
            dtype=self.dtype,
            compile=self.compile,
            fp8=self.fp8,
            latents_per_block=self.latents_per_block or None,
        )

    @property
    def unused(self) -> list[str]:
        """What was set and that the geometric generator has no use for; checkpoint_path and prompt apart."""
        names = ("model", "codec", "tae_checkpoint_path", "random_weights", "compile", "fp8", "dtype")
        return [name for name in names if getattr(self, name) != PARAMETERS[name][0]]


def parse_size(text: str) -> tuple[int, int] | str:
    """``"480x832"`` as (480, 832), ``"auto"`` as it is; InputError otherwise, and for sides that no world can have."""
    if text == "auto":
        return text
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.strip().isdecimal() for p in parts):
        raise InputError(f"size: '{text}' is not HEIGHTxWIDTH such as 480x832, nor auto")
    size = int(parts[0]), int(parts[1])
    if not all(SHORTEST_SIDE <= side <= LONGEST_SIDE for side in size):
        raise InputError(f"size: {text} is not a size; sides may have {SHORTEST_SIDE} to {LONGEST_SIDE} pixels")
    return size


def check_choice(name: str, value: str) -> None:
    """InputError if a parameter that is one of a few words is another."""
    choices = {"loop": LOOPS, "pacing": PACINGS, "dtype": DTYPES, "codec": CODECS}[name]
    if value not in choices:
        raise InputError(f"{name}: '{value}' is not one of {', '.join(choices)}")


def declare(node: Node) -> Settings:
    """Declare all parameters on ``node`` and return their checked values.

    A node that does not publish the clock follows it, unless it was told a ``use_sim_time``.

    Raises:
        InputError: one line that names the argument to change.
    """
    values = {n: node.declare_parameter(n, default, d).value for n, (default, d) in PARAMETERS.items()}
    settings = Settings(**{f.name: values[f.name] for f in fields(Settings)})
    for name in ("loop", "pacing", "dtype", "codec"):
        check_choice(name, values[name])
    settings.size = parse_size(values["size"])
    if settings.video and settings.scene:
        raise InputError("video and scene: both are given; leave one empty")
    for name in ("checkpoint_path", "tae_checkpoint_path"):
        path = getattr(settings, name)
        if path and not Path(path).expanduser().exists():
            raise InputError(f"{name}: {path} does not exist; leave it empty or name a file")
    if not math.isfinite(settings.fps):
        raise InputError(f"fps: {settings.fps} is not a frame rate; use a number such as 24.0")
    if settings.world_frame == "auto":
        settings.world_frame = "world" if settings.frame_prefix else ""
    if not settings.publish_clock and "use_sim_time" not in node._parameter_overrides:
        # rclpy has no public way to tell a use_sim_time that was given from its default.
        node.set_parameters([Parameter("use_sim_time", value=True)])
    return settings
