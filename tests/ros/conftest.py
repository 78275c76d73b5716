"""One graph for all, one world for most. Imports wait for the fixtures: without ROS 2 this file loads all the same."""

import pytest


@pytest.fixture(scope="session")
def graph():
    from tests.ros.graph import Graph

    graph = Graph()
    yield graph
    graph.close()


@pytest.fixture(scope="session")
def shared_world(graph):
    from tests.ros.graph import SIZE, Driver, Launched

    launched = Launched(f"size:={SIZE}")
    yield Driver(graph, launched)
    launched.end()


@pytest.fixture
def world(shared_world, graph):
    """The shared world, playing from its start, with nothing asked of it."""
    from simulation_interfaces.srv import ResetSimulation

    shared_world.launched.wait_line("driving")
    shared_world.play()
    shared_world.call(ResetSimulation, "reset_simulation")
    yield shared_world
    graph.close_topics()
    code = shared_world.launched.process.poll()
    assert code is None, f"the world ended with {code}\n{shared_world.launched.output}"
