"""world_node over DDS: frames delivered, transport latency, latency from a command to the first frame that shows it.

    .venv/bin/python benchmarks/ros.py            # default: 480x832 at 24 Hz, writes benchmarks/results/ros.json

The world is launched as users launch it; this process subscribes as `ros2 topic hz` does, without a profile of its own.

* **delivered**: raw images received of those shown, by their stamps (sim time counts shown frames).
* **rate**: images per second of wall time; below 24 the generator or the machine is too slow, and sim time slows.
* **transport**: from the middleware's send time stamp to the callback, deserialised.
* **command to frame**: the playhead is paused and the camera still, so images are equal; a cmd_vel is published at a
  random moment; the first image that differs shows it. Bound: one block period + a block's compute time (+ no
  look-ahead); bar: bound + 20 ms.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path

from machine import describe, write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ros.json"


def activate() -> None:
    """Start anew in the environment that has ROS 2 and the workspace, on a domain of its own."""
    if "INSPATIO_BENCHMARK_ROS" in os.environ:
        return
    sys.path.insert(0, str(ROOT / "scripts"))
    import environment

    env = environment.workspace_environment(environment.find_ros(os.environ), os.environ)
    env |= {"INSPATIO_BENCHMARK_ROS": "1", "ROS_DOMAIN_ID": str(101 + os.getpid() % 100)}
    os.execve(sys.executable, sys.orig_argv, env)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(values, unit: float = 1e3) -> dict:
    import numpy as np

    values = np.asarray(values) * unit
    return {name: round(float(np.quantile(values, q)), 2) for name, q in (("median", 0.5), ("p95", 0.95), ("max", 1.0))}


class Bench:
    """A launched world and a plain subscriber."""

    def __init__(self, size: str, scene: str):
        from diagnostic_msgs.msg import DiagnosticArray

        from tests.ros.graph import Driver, Graph, Launched, until

        self.graph = Graph()
        self.launched = Launched(f"size:={size}", *([f"scene:={scene}"] if scene else []), threads=os.cpu_count())
        self.launched.wait_line("driving")
        self.pid = self.launched.node_pid()
        self.driver = Driver(self.graph, self.launched)
        self.status: dict[str, str] = {}
        self.graph.node.create_subscription(DiagnosticArray, "/diagnostics", self._take_status, 1)
        until(lambda: "block compute median [ms]" in self.status, "diagnostics of a playing world")

    def _take_status(self, msg) -> None:
        self.status = {v.key: v.value for s in msg.status for v in s.values}

    def close(self) -> int:
        code = self.launched.end()
        self.graph.close()
        return code

    def stream(self, seconds: float, others: tuple = ()) -> dict:
        """Receive raw images, and the ``others`` (kind, topic) besides, for some seconds."""
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import Image

        stamps, sent, received, counts = [], [], [], {}

        def on_image(msg, info) -> None:
            now = time.time_ns()
            stamps.append(msg.header.stamp.sec + msg.header.stamp.nanosec * 1e-9)
            sent.append(info["source_timestamp"])
            received.append(now)

        def count(name):
            def on_other(msg) -> None:
                counts[name] = counts.get(name, 0) + 1

            return on_other

        node = self.graph.node
        subscriptions = [node.create_subscription(k, n, count(n), QoSProfile(depth=5)) for k, n in others]
        subscriptions.append(node.create_subscription(Image, "camera/image_raw", on_image, QoSProfile(depth=5)))
        while len(stamps) < 24:
            time.sleep(0.05)
        del stamps[:], sent[:], received[:]
        counts.clear()
        late, cpu, start = int(self.status.get("late blocks", 0)), cpu_seconds(self.pid), time.monotonic()
        time.sleep(seconds)
        wall = time.monotonic() - start
        n = len(stamps)
        result = {
            "images": n,
            "shown": round((stamps[n - 1] - stamps[0]) * 24) + 1,
            "rate [Hz]": round((n - 1) / ((received[n - 1] - received[0]) * 1e-9), 2),
            "transport [ms]": summary([(r - s) * 1e-9 for r, s in zip(received[:n], sent[:n])]),
            "node CPU [cores]": round((cpu_seconds(self.pid) - cpu) / wall, 2),
            "block compute median [ms]": float(self.status["block compute median [ms]"]),
            "late blocks": int(self.status["late blocks"]) - late,
        }
        result["delivered [%]"] = round(100 * n / result["shown"], 2)
        result |= {f"{name} [Hz]": round(c / wall, 2) for name, c in counts.items()}
        for s in subscriptions:
            node.destroy_subscription(s)
        return result

    def latency(self, runs: int) -> dict:
        """From cmd_vel to the first image that differs."""
        from sensor_msgs.msg import Image
        from std_srvs.srv import Trigger

        images: list[tuple[float, bytes]] = []

        def on_image(msg) -> None:
            images.append((time.monotonic(), hash(msg.data.tobytes())))

        subscription = self.graph.node.create_subscription(Image, "camera/image_raw", on_image, 5)
        self.driver.call(Trigger, "playhead/pause")
        self.driver.twist(0, 0, 0, 0, 0, 0)
        rng, latencies, computes = random.Random(0), [], []

        def wait_still() -> None:
            while len(images) < 16 or len({pixels for _, pixels in images[-16:]}) > 1:
                del images[:-32]
                time.sleep(0.02)

        for run in range(runs):
            wait_still()
            time.sleep(rng.random() * 4 / 24)
            before = images[-1][1]
            asked = time.monotonic()
            self.driver.graph.publish(self._turn(0.3 if run % 2 else -0.3), "/cmd_vel")
            while (seen := next((t for t, pixels in list(images) if t > asked and pixels != before), None)) is None:
                time.sleep(0.001)
            latencies.append(seen - asked)
            computes.append(float(self.status["block compute median [ms]"]) * 1e-3)
            del images[:]
        self.driver.call(Trigger, "playhead/play")
        self.graph.node.destroy_subscription(subscription)
        compute = sorted(computes)[len(computes) // 2]
        bound = 4 / 24 + compute
        over = sum(x > bound + 0.020 for x in latencies)
        return {
            "runs": runs,
            "command to first frame [ms]": summary(latencies),
            "block period [ms]": round(4 / 24 * 1e3, 1),
            "block compute median [ms]": round(compute * 1e3, 1),
            "bound [ms]": round(bound * 1e3, 1),
            "bar: bound + 20 [ms]": round(bound * 1e3 + 20, 1),
            "over the bar": over,
        }

    def _turn(self, rate: float):
        from geometry_msgs.msg import Twist

        msg = Twist()
        msg.angular.z = rate
        return msg


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="480x832")
    parser.add_argument("--scene", default="", help="scene folder or shipped scene (default: courtyard)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each stream")
    parser.add_argument("--runs", type=int, default=40, help="commands whose latency is taken")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    activate()
    sys.path.insert(0, str(ROOT))
    from sensor_msgs.msg import CameraInfo, Image, PointCloud2

    rmw = os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    report = {"machine": describe() | {"rmw": rmw}, "size": args.size}
    bench = Bench(args.size, args.scene)
    try:
        report["raw images"] = bench.stream(args.seconds)
        everything = (
            (CameraInfo, "camera/camera_info"),
            (Image, "camera/depth/image_raw"),
            (PointCloud2, "camera/points"),
            (PointCloud2, "cloud_map_updates"),
        )
        report["everything"] = bench.stream(args.seconds, everything)
        report["latency"] = bench.latency(args.runs)
        report["machine"]["load_at_end"] = os.getloadavg()[0]
    finally:
        code = bench.close()
    report["exit code"] = code
    for name, values in report.items():
        print(f"{name}:" if isinstance(values, dict) else f"{name}: {values}")
        for key, value in values.items() if isinstance(values, dict) else ():
            print(f"    {key}: {value}")
    write(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
