"""Packaging of `inspatio`: the Python packages, and the shipped data as ament and pip both expect it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "inspatio"
ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "inspatio_core" / "__init__.py").read_text()).group(1)

# Only these folders ship; weights that a user downloads into checkpoints/ stay out of the package.
DATA = ("launch", "config", "rviz", "scenes", "traj", "checkpoints/tiny")


def data_files() -> list[tuple[str, list[str]]]:
    """The ament marker, package.xml and every shipped file, as (folder below the prefix, files)."""
    files = [
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ]
    folders: dict[str, list[str]] = {}
    for top in DATA:
        for path in sorted((ROOT / top).rglob("*")):
            relative = path.relative_to(ROOT)
            hidden = any(part.startswith((".", "__pycache__")) for part in relative.parts)
            if path.is_file() and not hidden:
                folders.setdefault(relative.parent.as_posix(), []).append(relative.as_posix())
    readme = "checkpoints/README.md"
    if (ROOT / readme).is_file():
        folders.setdefault("checkpoints", []).append(readme)
    return files + [(f"share/{NAME}/{folder}", names) for folder, names in folders.items()]


setup(
    name=NAME,
    version=VERSION,
    description="A robot simulator made from one video: world model core, Gymnasium env, ROS 2 launch files",
    maintainer="The inspatio maintainers",
    maintainer_email="maintainers@inspatio.example",
    license="Apache-2.0",
    packages=find_packages(include=["inspatio_core", "inspatio_core.*", "gym_env", "gym_env.*"]),
    include_package_data=False,
    package_data={"inspatio_core": ["py.typed", "manifests/*.json", "page/static/*", "page/static/**/*"]},
    data_files=data_files(),
    zip_safe=False,
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11,<2.14",
        "numpy",
        "scipy",
        "numba",
        "opencv-python-headless",
        "av",
        "onnxruntime",
        "gymnasium",
        "tqdm",
        "pyyaml",
        "safetensors",
        # The Wan autoencoder and the text encoder; imported only by the generators that need them.
        "diffusers>=0.38",
        "transformers>=5",
        "ftfy",
        "sentencepiece",
    ],
    extras_require={
        "sfm": ["pycolmap"],
        "open3d": ["open3d-cpu"],
        "window": ["pygame"],
        "test": ["pytest<9", "plyfile", "psutil", "pygame"],
        "dev": ["ruff"],
        # What ROS 2's Python tools import, and colcon with what it needs to build a workspace.
        "ros": [
            "argcomplete",
            "catkin_pkg",
            "colcon-common-extensions",
            "empy==3.3.4",
            "lark",
            "packaging",
            "psutil",
            "setuptools<80",
            "typeguard",
        ],
    },
    entry_points={"console_scripts": ["inspatio = inspatio_core.cli:main"]},
)
