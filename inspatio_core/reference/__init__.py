"""From a video, images or a scene folder to a `Reference`: frames, depth, camera path, intrinsics, masks."""

from inspatio_core.reference.reference import FrameCache, Reference

__all__ = ["FrameCache", "Reference"]
