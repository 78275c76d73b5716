"""One video in, a 4D world out that a robot can drive through: the core of InSpatio, without ROS and without Gym."""

__version__ = "0.1.0"
