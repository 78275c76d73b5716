"""Training data: an endless renderer of small, moving worlds in torch, and loaders for recorded clips."""

from inspatio_core.training.data.clips import (
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    Clip,
    Script,
    disoccluded,
    make_script,
    render,
    render_clip,
    stream,
)
from inspatio_core.training.data.paths import Offsets

__all__ = [
    "TRAIN_SEEDS",
    "VALIDATION_SEEDS",
    "Clip",
    "Offsets",
    "Script",
    "disoccluded",
    "make_script",
    "render",
    "render_clip",
    "stream",
]
