"""Cameras, motion, trajectories, playhead, splat, fill and the point map: pure functions, no networks."""
