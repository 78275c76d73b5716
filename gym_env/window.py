"""A window for ``render_mode="human"``, by pygame as in Gymnasium's own environments."""

from __future__ import annotations

import importlib.util
import os
import sys

import numpy as np

from inspatio_core.errors import InputError


def available() -> bool:
    """Whether a window can be opened: pygame is installed and there is a display."""
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    display = not sys.platform.startswith("linux") or any(os.environ.get(name) for name in displays)
    return display and importlib.util.find_spec("pygame") is not None


class Window:
    """Shows frames at a steady rate."""

    def __init__(self, size: tuple[int, int], fps: float, title: str):
        """Open a window for images of ``size`` (height, width), enlarged to about 480 lines; else InputError."""
        if not available():
            raise InputError(
                "render_mode: 'human' needs a display and pygame (pip install pygame); use render_mode='rgb_array'"
            )
        import pygame

        self._pygame = pygame
        scale = max(1, round(480 / size[0]))
        pygame.display.init()
        pygame.display.set_caption(title)
        self._screen = pygame.display.set_mode((size[1] * scale, size[0] * scale))
        self._clock = pygame.time.Clock()
        self._fps = fps

    def show(self, frame: np.ndarray) -> None:
        """Show one frame, uint8 [h, w, 3], and wait until the next is due."""
        surface = self._pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._screen.blit(self._pygame.transform.scale(surface, self._screen.get_size()), (0, 0))
        self._pygame.event.pump()
        self._pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()
