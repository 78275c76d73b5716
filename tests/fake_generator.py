"""A generator for tests: without weights, it depends on every byte it is given, slot by slot, and notes its calls."""

import copy
import hashlib
from types import SimpleNamespace

import numpy as np
import torch

from inspatio_core.generators import GeneratorSpec

NETWORK = frozenset({"anchor", "reference", "text", "history"})


def digest(*values):
    """A number that changes with any of the values."""
    h = hashlib.sha256()
    for value in values:
        h.update(value.numpy().tobytes() if torch.is_tensor(value) else repr(value).encode())
    return int.from_bytes(h.digest()[:6], "little")


class FakeGenerator:
    """Shows what is known as it is and noise elsewhere; the noise is keyed by all there is.

    It queues the frames of its look-ahead on its own, as a codec does, and so checks which ones it is told are shown.

    Attributes:
        calls: what was asked, in order: ("condition" or "generate", the blocks' numbers).
    """

    def __init__(self, look_ahead=0, latents=1, generates=False, needs=NETWORK, **spec):
        self.spec = GeneratorSpec("fake", latents, look_ahead=look_ahead, generates=generates, needs=needs, **spec)
        self.calls = []
        self._workspace = None  # what the last ``condition`` of any session left; one for all sessions

    def new_state(self, reference, seed):
        return {"seed": seed, "prompt": reference.caption or "", "history": 0, "rgb": None, "known": None}

    def set_prompt(self, state, prompt):
        state["prompt"] = prompt

    @staticmethod
    def _foresee(source_rgb, states, blocks):
        rows = zip(source_rgb, states, blocks, strict=True)
        return [digest(rgb, s["seed"], s["prompt"], s["history"], k) for rgb, s, k in rows]

    def condition(self, source_rgb, states, blocks):
        self.calls.append(("condition", list(blocks)))
        self._workspace = SimpleNamespace(digests=self._foresee(source_rgb, copy.deepcopy(states), blocks))
        return self._workspace

    def generate(self, anchor, source_rgb, states, blocks, condition, known):
        self.calls.append(("generate", list(blocks)))
        b = len(states)
        sources = source_rgb.unflatten(0, (b, -1))
        assert condition.digests == self._foresee(sources, states, blocks), "made for other frames, states or blocks"
        self._workspace = condition
        out = []
        for row, state in enumerate(states):
            fields = {name: t.unflatten(0, (b, -1))[row] for name, t in vars(anchor).items()}
            shown = known.unflatten(0, (b, -1))[row]
            first = state["rgb"] is None
            assert len(fields["known"]) == len(shown) + (self.spec.look_ahead if first else 0)
            for name, new in (("rgb", fields["filled_rgb"]), ("known", fields["known"])):
                state[name] = new.clone() if first else torch.cat([state[name], new])
            assert torch.equal(shown, state["known"][: len(shown)]), "not the masks of the frames shown"
            state["history"] = digest(*fields.values(), sources[row], condition.digests[row], shown)
            noise = np.random.default_rng(state["history"]).integers(0, 256, (*shown.shape, 3), np.uint8)
            out.append(torch.where(shown[..., None], state["rgb"][: len(shown)], torch.from_numpy(noise)))
            for name in ("rgb", "known"):
                state[name] = state[name][len(shown) :].clone()
        return torch.cat(out)
