"""Drive the launched world by launch_testing: `launch_test tests/ros/drive_launch.py` in a sourced shell."""

import time
import unittest

import launch_testing
import launch_testing.actions
import launch_testing.asserts
import launch_testing.markers
import rclpy
from ament_index_python.packages import get_package_share_directory
from geometry_msgs.msg import Twist
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Image


@launch_testing.markers.keep_alive
def generate_test_description():
    """The launch file as users start it, at a small size."""
    world = IncludeLaunchDescription(
        f"{get_package_share_directory('inspatio')}/launch/world.launch.py",
        launch_arguments={"size": "120x208"}.items(),
    )
    return LaunchDescription([world, launch_testing.actions.ReadyToTest()])


class TestDriving(unittest.TestCase):
    """One cmd_vel, and the camera goes where it says."""

    def setUp(self):
        rclpy.init()
        self.node = rclpy.create_node("driver")

    def tearDown(self):
        self.node.destroy_node()
        rclpy.shutdown()

    def spin_until(self, condition, what):
        end = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), end, what)
            rclpy.spin_once(self.node, timeout_sec=0.1)

    def test_the_camera_moves_as_commanded(self):
        images, odometry = [], []
        self.node.create_subscription(Image, "camera/image_raw", images.append, 5)
        self.node.create_subscription(Odometry, "odom", odometry.append, 50)
        publisher = self.node.create_publisher(Twist, "cmd_vel", 1)
        self.spin_until(lambda: len(images) > 4 and len(odometry) > 4, "no frames")
        self.spin_until(publisher.get_subscription_count, "nobody listens to cmd_vel")
        self.assertEqual((images[0].encoding, images[0].height, images[0].width), ("rgb8", 120, 208))
        twist = Twist()
        twist.linear.x = 0.5
        publisher.publish(twist)
        self.spin_until(lambda: any(m.twist.twist.linear.x > 0 for m in odometry), "the camera stands still")
        self.spin_until(lambda: odometry[-1].twist.twist.linear.x == 0, "cmd_vel does not time out")
        moving = [m for m in odometry if m.twist.twist.linear.x > 0]
        start = odometry[odometry.index(moving[0]) - 1]
        travelled = moving[-1].pose.pose.position.x - start.pose.pose.position.x
        self.assertAlmostEqual(travelled, 0.5 * len(moving) / 24.0, places=6)


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    """After Ctrl-C."""

    def test_exit_codes(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
