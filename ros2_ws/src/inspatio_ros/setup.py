"""Packaging of `inspatio_ros`: the nodes, each a script in exe/ that ROS finds in lib/inspatio_ros."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "inspatio_ros"
ROOT = Path(__file__).resolve().parent

setup(
    name=NAME,
    version="0.1.0",
    description="ROS 2 nodes that serve an inspatio world",
    maintainer="The inspatio maintainers",
    maintainer_email="maintainers@inspatio.example",
    license="Apache-2.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"lib/{NAME}", sorted(f"exe/{path.name}" for path in (ROOT / "exe").iterdir() if path.is_file())),
    ],
    zip_safe=False,
    python_requires=">=3.10",
    install_requires=["inspatio"],
    extras_require={"test": ["pytest<9"]},
)
