"""A slot of the star generator worked out without any of its streaming: whole clips, joined caches, maps built anew.

For every block everything from the slot's first frame on is done again: one warp of all frames, one encoding of each
video, one decoding of all latents. Nothing but the predictions themselves is carried from block to block. The
network runs plainly, with a joined cache.
"""

import torch

from inspatio_core.geometry.anchor import build_anchor
from inspatio_core.geometry.depth_completion import complete_depth
from inspatio_core.geometry.motion import Motion, block_poses
from inspatio_core.geometry.playhead import Playhead
from inspatio_core.geometry.point_map import GENERATED, OBSERVED, PointMap
from inspatio_core.latents import mask_latent
from inspatio_core.memory import CONFIDENT
from inspatio_core.star.cache import GrowingCache
from inspatio_core.star.rollout import block_noise
from inspatio_core.star.schedule import Schedule


class WholeClip:
    """One slot of `world`, on `reference`, from its first frame on; ``block`` yields (rgb, depth, known) of a block."""

    def __init__(self, world, reference, seed: int, prompt: str | None = None):
        self.world, self.reference, self.seed, self.prompt = world, world.fitted(reference), seed, prompt
        self.generator, self.spec = world.generator, world.generator.spec
        self.playhead = Playhead([self.reference.frame_count], [self.reference.fps / world.fps], world.loop)
        self.pose = torch.eye(4, dtype=torch.float64)[None]
        self.indices, self.poses, self.view_block, self.latents, self.sights = [], [], [], [], []

    def block(self, motion: Motion | None = None, command=None):
        """The next block: uint8 [F, H, W, 3], float32 [F, H, W], bool [F, H, W]."""
        number, spec = len(self.latents), self.spec
        shows = spec.frames if number else spec.first_frames
        commits = shows if number else shows + spec.look_ahead
        indices = self.playhead.advance(commits, [command])[0].tolist()
        poses, _ = block_poses(self.pose, [motion or Motion.hold()], commits, 1 / self.world.fps)
        if not number:
            poses = self.pose[:, None].expand(1, commits, 4, 4)
        self.pose = poses[:, -1]
        self.indices += indices
        self.poses += list(poses[0])
        self.view_block += [number] * commits
        with torch.no_grad():
            return self._work_out(number, shows)

    def _map_of_block(self, number: int) -> PointMap:
        """What the blocks up to two before this one left."""
        out, seen, reference = PointMap(limit=self.world.map_limit), set(), self.reference
        for index, stamp, frame in self.sights[: max(number - 1, 0)]:
            if index not in seen:
                depth = reference.depth(index)
                out.insert(reference.rgb(index), depth, depth > 0, reference.K[index],
                           reference.world_from_camera[index], OBSERVED, stamp=stamp,
                           moving=reference.moving(index))  # fmt: skip
            seen.add(index)
            rgb, depth, confidence, known, pose = frame
            confidence = torch.where(known, 0.0, confidence)
            sure = confidence >= CONFIDENT
            if sure.any():
                out.insert(rgb, depth, sure, reference.K[0], pose, GENERATED, confidence=confidence, stamp=stamp)
        return out

    def _work_out(self, number: int, shows: int):
        world, generator, reference = self.world, self.generator, self.reference
        model, codec = generator.model, generator.codec
        n, total = model.config.latents_per_block, len(self.indices)
        source_rgb = torch.stack([reference.rgb(i) for i in self.indices])
        maps = [self._map_of_block(k) for k in range(number + 1)] if world.memory else None
        anchor = build_anchor(
            source_rgb,
            torch.stack([reference.depth(i) for i in self.indices]),
            reference.K[self.indices],
            reference.world_from_camera[self.indices],
            reference.K[:1].expand(total, 3, 3),
            torch.stack(self.poses),
            world.size,
            torch.full((total,), reference.median_depth, dtype=torch.float64),
            None if maps is None else [maps[k] for k in self.view_block],
        )
        shown = total - self.spec.look_ahead
        source, render = (
            codec.encode_clip((video.movedim(-1, 1) / 127.5 - 1)[None])[:, -n:] for video in (source_rgb, anchor.rgb)
        )
        mask = mask_latent(anchor.known[:shown][None, None] * 2.0 - 1)[:, -n:]
        text = None
        if model.config.text:
            rows, length = generator.embed(self.prompt)
            text = model.text_kv(rows[None], [length])
        last = self.latents[-1] if number else None
        noise = [
            block_noise(self.seed, number, step, source.shape[1:])[None] for step in range(len(model.config.steps))
        ]
        x0 = self._sampled(source if last is None else torch.cat([source, last], 1), noise, mask, render, text)
        self.latents.append(x0)
        video = codec.decode_clip(torch.cat(self.latents, 1))[0, -shows:]
        rgb = ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
        now = slice(shown - shows, shown)
        known = anchor.known[now]
        depth, confidence = complete_depth(rgb, anchor.depth[now], known, anchor.filled_depth[now])
        frame = (rgb[-1], depth[-1], confidence[-1], known[-1], self.poses[shown - 1])
        self.sights.append((self.indices[shown - 1], (shown - 1) / world.fps, frame))
        return rgb, depth, known

    def _sampled(self, context, noise, mask, render, text) -> torch.Tensor:
        model = self.generator.model
        schedule, cache, table = Schedule(model.config.shift), GrowingCache(), model.rope(*context.shape[-2:])
        model.context(context, model.modulation(torch.zeros(1)), table, cache, text)
        x0 = None
        for t, drawn in zip(schedule.warped(torch.tensor(model.config.steps)), noise, strict=True):
            sigma = float(schedule.sigma(t))
            x = drawn if x0 is None else (1 - torch.tensor(sigma)) * x0 + torch.tensor(sigma) * drawn
            flow = model.denoise(x, mask, render, model.modulation(t[None]), table, cache, text)
            x0 = (x.double() - sigma * flow.double()).float()
        return x0
