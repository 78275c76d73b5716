"""Worlds whose frames a network makes, launched as users launch them; its weights are made up."""

import json

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from inspatio_ros import images
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2
from sensor_msgs_py import point_cloud2

from tests.ros.graph import Driver, Launched, until
from tests.ros.test_world_node import same_frame, set_parameter

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE)


@pytest.fixture
def launch(graph):
    """Starts a star world with more arguments; it must end well."""
    worlds = []

    def start(*arguments):
        worlds.append(Launched("namespace:=star", "generator:=star", "random_weights:=true", "size:=64x96", *arguments))
        return Driver(graph, worlds[-1], "/star")

    yield start
    graph.close_topics()
    assert [launched.end() for launched in worlds] == [0] * len(worlds), worlds[-1].output


def status(topic) -> DiagnosticStatus | None:
    """The star world's newest diagnostics."""
    found = [s for m in list(topic.messages) for s in m.status if s.name == "/star/world: world"]
    return found[-1] if found else None


def test_images_depth_and_map_arrive_and_a_model_without_text_refuses_prompts(launch):
    world = launch()
    assert "[WARN]" in world.launched.wait_line("RANDOM WEIGHTS")
    topics = [world.topic(Image, name) for name in ("camera/image_raw", "camera/depth/image_raw")]
    cloud = world.topic(PointCloud2, "cloud_map", LATCHED)
    image, depth = same_frame(topics)
    assert (image.height, image.width, image.encoding, depth.encoding) == (64, 96, "rgb8", "32FC1")
    z = images.read(depth)
    assert np.isfinite(z).all() and z.min() > 0
    until(lambda: cloud.messages and cloud.messages[-1].width > 1000, "a map")
    points = point_cloud2.read_points(cloud.messages[-1])
    assert (points["origin"] == 0).any() and np.isfinite(points["x"]).all()
    refused = set_parameter(world, "prompt", "a kitchen")
    assert not refused.successful and refused.reason == "prompt: generator star, with its model, reads no text"
    diagnostics = world.graph.topic(DiagnosticArray, "/diagnostics")
    seen = until(lambda: status(diagnostics), "diagnostics")
    assert seen.level == DiagnosticStatus.WARN and "RANDOM WEIGHTS" in seen.message


def test_a_prompt_is_changed_while_the_world_runs(launch, tmp_path):
    model = tmp_path / "model.json"
    sizes = {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 1, "freq_dim": 16, "text_dim": 24, "text_len": 8}
    model.write_text(json.dumps(sizes | {"latents_per_block": 1, "codec_width": 8}))
    world = launch(f"model:={model}", "prompt:=a wall")
    world.launched.wait_line("driving")
    diagnostics = world.graph.topic(DiagnosticArray, "/diagnostics")

    def followed():
        return next((v.value for v in status(diagnostics).values if v.key == "prompt"), None)

    until(lambda: status(diagnostics) and followed() == "a wall", "the prompt it was launched with")
    assert set_parameter(world, "prompt", "a kitchen, morning light").successful
    line = world.launched.wait_line("follow 'a kitchen, morning light'")
    assert "[INFO]" in line and "prompt: frames after" in line
    until(lambda: followed() == "a kitchen, morning light", "the new prompt")
    image = world.topic(Image, "camera/image_raw")
    assert image.next(5)
