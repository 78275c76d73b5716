"""NumPy images to and from sensor_msgs, without cv_bridge.

``write`` fills a message that is kept and published again and again: the pixels are copied straight into its
``array.array``. Assigning an ndarray or a memoryview to ``msg.data`` would be about a thousand times slower (the
generated setter goes element by element).
"""

from __future__ import annotations

import array
import sys

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

ENCODINGS = {
    "rgb8": (np.uint8, 3),
    "bgr8": (np.uint8, 3),
    "rgba8": (np.uint8, 4),
    "bgra8": (np.uint8, 4),
    "mono8": (np.uint8, 1),
    "8UC1": (np.uint8, 1),
    "8UC3": (np.uint8, 3),
    "mono16": (np.uint16, 1),
    "16UC1": (np.uint16, 1),
    "32FC1": (np.float32, 1),
}
"""Encoding name: (dtype, channels)."""

_COLOUR = {"rgb8": "RGB", "bgr8": "BGR", "rgba8": "RGBA", "bgra8": "BGRA", "mono8": "GRAY"}


def write_bytes(msg, size: int) -> np.ndarray:
    """Make ``msg.data`` hold ``size`` bytes and return them as a writable uint8 view."""
    if not isinstance(msg.data, array.array) or len(msg.data) != size:
        data = array.array("B")
        data.frombytes(bytes(size))
        msg.data = data
    return np.frombuffer(msg.data, np.uint8)


def write(msg: Image, image: np.ndarray, encoding: str) -> Image:
    """Put ``image`` ([H, W] or [H, W, C] of the encoding's dtype) into ``msg``; the header is left alone."""
    dtype, channels = ENCODINGS[encoding]
    if image.dtype != dtype or image.ndim not in (2, 3) or (image.shape[2] if image.ndim == 3 else 1) != channels:
        wanted = f"{np.dtype(dtype)} with {channels} channels"
        raise ValueError(f"{encoding} is {wanted}, got {image.dtype} {list(image.shape)}")
    msg.height, msg.width = image.shape[:2]
    msg.encoding = encoding
    msg.is_bigendian = int(sys.byteorder == "big")
    msg.step = msg.width * channels * np.dtype(dtype).itemsize
    write_bytes(msg, msg.step * msg.height).view(dtype).reshape(image.shape)[...] = image
    return msg


def read(msg: Image) -> np.ndarray:
    """The pixels of ``msg`` as [H, W] or [H, W, C], a copy in native byte order; ``step`` padding is dropped."""
    if msg.encoding not in ENCODINGS:
        raise ValueError(f"encoding '{msg.encoding}' is not one of {', '.join(ENCODINGS)}")
    dtype, channels = ENCODINGS[msg.encoding]
    dtype = np.dtype(dtype).newbyteorder(">" if msg.is_bigendian else "<")
    row = msg.width * channels * dtype.itemsize
    if msg.step < row or len(msg.data) < msg.step * msg.height:
        raise ValueError(f"{msg.height}x{msg.width} {msg.encoding}: only {len(msg.data)} bytes, step {msg.step}")
    rows = np.frombuffer(msg.data, np.uint8, msg.step * msg.height).reshape(msg.height, msg.step)
    pixels = np.ascontiguousarray(rows[:, :row]).view(dtype).astype(dtype.newbyteorder("="))
    return pixels.reshape((msg.height, msg.width, channels) if channels > 1 else (msg.height, msg.width))


def jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """uint8 [H, W, 3] RGB as JPEG."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not ok:
        raise ValueError(f"cannot encode an image of {list(rgb.shape)}")
    return data.tobytes()


class Bridge:
    """The methods of ``cv_bridge.CvBridge`` that people call, on the converter above."""

    def cv2_to_imgmsg(self, image: np.ndarray, encoding: str = "passthrough", header=None) -> Image:
        """``image`` as a message; ``passthrough`` names it by dtype and channels (8UC1, 8UC3, 16UC1, 32FC1)."""
        if encoding == "passthrough":
            channels = image.shape[2] if image.ndim == 3 else 1
            kind = {"uint8": "8U", "uint16": "16U", "float32": "32F"}.get(image.dtype.name, image.dtype.name)
            encoding = f"{kind}C{channels}"
            if encoding not in ENCODINGS:
                raise ValueError(f"no encoding for {image.dtype} {list(image.shape)}; use {', '.join(ENCODINGS)}")
        msg = write(Image(), image, encoding)
        if header is not None:
            msg.header = header
        return msg

    def imgmsg_to_cv2(self, msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """The pixels of ``msg``, converted between colour orders if ``desired_encoding`` asks for it."""
        image = read(msg)
        if desired_encoding in ("passthrough", msg.encoding):
            return image
        if msg.encoding in _COLOUR and desired_encoding in _COLOUR:
            code = getattr(cv2, f"COLOR_{_COLOUR[msg.encoding]}2{_COLOUR[desired_encoding]}")
            return cv2.cvtColor(image, code)
        if {msg.encoding, desired_encoding} == {"mono16", "16UC1"}:
            return image
        raise ValueError(f"cannot convert '{msg.encoding}' to '{desired_encoding}'")

    def cv2_to_compressed_imgmsg(self, image: np.ndarray, dst_format: str = "jpg") -> CompressedImage:
        """BGR or grey ``image``, encoded as ``dst_format`` (jpg or png)."""
        ok, data = cv2.imencode(f".{dst_format}", image)
        if not ok:
            raise ValueError(f"cannot encode an image of {list(image.shape)} as {dst_format}")
        msg = CompressedImage(format="jpeg" if dst_format in ("jpg", "jpeg") else dst_format)
        msg.data = array.array("B", data.tobytes())
        return msg


def works(bridge) -> bool:
    """Whether ``bridge`` brings one image of each common encoding there and back unharmed."""
    rng = np.random.default_rng(0)
    samples = {
        "rgb8": rng.integers(0, 256, (5, 7, 3), np.uint8),
        "bgr8": rng.integers(0, 256, (5, 7, 3), np.uint8),
        "mono8": rng.integers(0, 256, (5, 7), np.uint8),
        "16UC1": rng.integers(0, 65536, (5, 7), np.uint16),
        "32FC1": rng.random((5, 7), np.float32),
    }
    try:
        for encoding, image in samples.items():
            msg = bridge.cv2_to_imgmsg(image, encoding)
            back = np.asarray(bridge.imgmsg_to_cv2(msg))
            same = back.dtype == image.dtype and np.array_equal(back.reshape(image.shape), image)
            if msg.encoding != encoding or not same:
                return False
    except Exception:  # whatever a broken build raises, it is broken
        return False
    return True


def get_bridge():
    """cv_bridge's CvBridge if it is installed and passes a round trip, else the built-in ``Bridge``.

    An installed cv_bridge may still fail: the binary built against NumPy 1 does not load beside NumPy 2.
    """
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()
    except Exception:  # a build for another NumPy raises AttributeError or ImportError, or worse
        return Bridge()
    return bridge if works(bridge) else Bridge()
