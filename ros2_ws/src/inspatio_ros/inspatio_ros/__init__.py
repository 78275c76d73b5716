"""ROS 2 nodes that serve an inspatio world."""
