"""The prompt of a running world: encoded beside it, followed from a block on. Knows the core, not ROS."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet  # another class than the built-in one before Python 3.11

from inspatio_core.errors import InputError
from inspatio_ros.worker import Worker

QUICK = 0.5
"""Seconds that are waited to see whether a prompt cannot be encoded; encoding one may take minutes."""


class Prompts:
    """Takes prompts for a worker's world, any number at any time: the newest wins.

    Args:
        worker: whose session is to follow them.
        say: told, in one line, when a prompt took effect.
        complain: told, in one line, why one that was taken cannot be followed after all.
    """

    def __init__(self, worker: Worker, say: Callable[[str], None], complain: Callable[[str], None]):
        self.followed: str | None = None
        """What the world follows; None while it loads, and where it reads no text."""
        self._worker, self._say, self._complain = worker, say, complain
        self._checked: Future = Future()
        self._taken: Future = Future()

    def check(self, text: str) -> None:
        """Begin to encode ``text``; ``take`` is to be called next, unless this raises.

        Raises:
            InputError: the world is not there yet, reads no text, or the text cannot be encoded, as far as that shows
                at once.
        """
        world = self._worker.world
        if world is None:
            raise InputError("prompt: the world is still loading; set it when frames come")
        generator = world.generator
        if "text" not in generator.spec.needs:
            raise InputError(f"prompt: generator {generator.spec.name}, with its model, reads no text")
        encoded: Future = Future()

        def encode() -> None:
            try:
                encoded.set_result(generator.encode_prompt(text))
            except Exception as error:
                encoded.set_exception(error)

        # Daemons: a text encoder at work keeps no node from ending.
        threading.Thread(target=encode, name="prompt", daemon=True).start()
        try:
            encoded.result(QUICK)
        except NotYet:
            pass
        except Exception as error:
            raise InputError(_line(error)) from error
        self._checked = encoded

    def take(self, text: str) -> None:
        """Follow the prompt that was checked last, from the first block that begins after it is encoded."""
        encoded = self._taken = self._checked
        encoded.add_done_callback(lambda _: self._hand_on(text, encoded))

    def _hand_on(self, text: str, encoded: Future) -> None:
        error = encoded.exception()
        if error is not None:
            self._complain(f"{_line(error)}; the world follows its old prompt")
        else:
            self._worker.ask(lambda: self._follow(text, encoded))

    def _follow(self, text: str, encoded: Future) -> None:
        """In the world thread, between two blocks."""
        if encoded is not self._taken:
            return  # a newer one was taken meanwhile
        try:
            self._worker.session.set_prompt(text)
        except InputError as error:
            self._complain(f"{_line(error)}; the world follows its old prompt")
            return
        self.followed = text
        self._say(f"prompt: frames after {self._worker.made:.3f} s follow '{text}'")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if text.startswith("prompt: ") else f"prompt: {text or type(error).__name__}"
