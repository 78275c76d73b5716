"""A ROS 2 client of a running world: drive a square, and say what the camera saw.

    ros2 launch inspatio world.launch.py &
    python examples/ros_drive.py
"""

import math

import rclpy
from geometry_msgs.msg import Twist
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import Image

SIDE, SPEED, TURN = 0.4, 0.4, math.pi / 4  # m, m/s, rad/s


class Square(Node):
    """Publishes cmd_vel by the time that odometry reports, so it drives the same however fast the world runs."""

    def __init__(self):
        super().__init__("square")
        self.legs = [(SPEED, 0.0, SIDE / SPEED), (0.0, TURN, math.pi / 2 / TURN)] * 4
        self.since = None
        self.images = 0
        self.publisher = self.create_publisher(Twist, "cmd_vel", 1)
        self.create_subscription(Odometry, "odom", self.drive, 10)
        self.create_subscription(Image, "camera/image_raw", self.look, 5)

    def look(self, image: Image) -> None:
        """Count what comes."""
        self.images += 1

    def drive(self, odometry: Odometry) -> None:
        """Next command, each time a frame is shown."""
        now = odometry.header.stamp.sec + odometry.header.stamp.nanosec * 1e-9
        self.since = now if self.since is None else self.since
        if self.legs and now - self.since > self.legs[0][2]:
            self.legs.pop(0)
            self.since = now
            p = odometry.pose.pose.position
            self.get_logger().info(f"at ({p.x:.2f}, {p.y:.2f}), {self.images} images so far")
        twist = Twist()
        if self.legs:
            twist.linear.x, twist.angular.z, _ = self.legs[0]
        self.publisher.publish(twist)


def main() -> None:
    """Drive until the square is closed."""
    rclpy.init()
    node = Square()
    while rclpy.ok() and node.legs:
        rclpy.spin_once(node)
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main()
