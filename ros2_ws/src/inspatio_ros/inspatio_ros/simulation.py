"""Simulator control by the standard ``simulation_interfaces``: features, state, step, reset; names below ``~/``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from simulation_interfaces.msg import Result, SimulationState, SimulatorFeatures
from simulation_interfaces.srv import (
    GetSimulationState,
    GetSimulatorFeatures,
    ResetSimulation,
    SetSimulationState,
    StepSimulation,
)

from inspatio_ros.worker import State, Worker

STATES = {
    State.LOADING: SimulationState.STATE_LOADING_WORLD,
    State.PLAYING: SimulationState.STATE_PLAYING,
    State.PAUSED: SimulationState.STATE_PAUSED,
    State.STOPPED: SimulationState.STATE_STOPPED,
    State.FAILED: SimulationState.STATE_NO_WORLD,
    State.QUITTING: SimulationState.STATE_QUITTING,
}

FEATURES = (
    SimulatorFeatures.SIMULATION_RESET,
    SimulatorFeatures.SIMULATION_RESET_TIME,
    SimulatorFeatures.SIMULATION_RESET_STATE,
    SimulatorFeatures.SIMULATION_STATE_GETTING,
    SimulatorFeatures.SIMULATION_STATE_SETTING,
    SimulatorFeatures.SIMULATION_STATE_PAUSE,
    SimulatorFeatures.STEP_SIMULATION_SINGLE,
    SimulatorFeatures.STEP_SIMULATION_MULTIPLE,
)

TARGETS = (
    SimulationState.STATE_PLAYING,
    SimulationState.STATE_PAUSED,
    SimulationState.STATE_STOPPED,
    SimulationState.STATE_QUITTING,
)
"""The states that can be asked for."""

MOST_STEPS = 1_000_000


class SimulationServices:
    """The services. Those that change something wait for the world thread, one at a time; they end a step in progress.

    Args:
        reset: job that resets (state, time), see ``Worker.reset``.
        quit: called for STATE_QUITTING.
        about: free text for ``custom_info``.
    """

    def __init__(
        self,
        node: Node,
        worker: Worker,
        *,
        reset: Callable[[bool, bool], None],
        halt: Callable[[], None],
        quit: Callable[[], None],
        about: Callable[[], str],
    ):
        self._worker, self._reset, self._halt, self._quit, self._about = worker, reset, halt, quit, about
        self._step_in_hand: threading.Event | None = None
        changing, stepping = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        for kind, name, callback, group in (
            (GetSimulatorFeatures, "get_simulator_features", self._get_features, None),
            (GetSimulationState, "get_simulation_state", self._get_state, None),
            (SetSimulationState, "set_simulation_state", self._set_state, changing),
            (StepSimulation, "step_simulation", self._step, stepping),
            (ResetSimulation, "reset_simulation", self._reset_simulation, changing),
        ):
            node.create_service(kind, f"~/{name}", callback, callback_group=group)

    def _get_features(self, request, response):
        response.features.features = list(FEATURES)
        response.features.custom_info = self._about()
        return response

    def _get_state(self, request, response):
        response.state.state = STATES[self._worker.state]
        response.result.result = Result.RESULT_OK
        return response

    def _set_state(self, request, response):
        target, state = request.state.state, self._worker.state
        codes = SetSimulationState.Response
        stepping = target in TARGETS and self._end_step()
        if target == STATES[state] and not stepping:
            response.result = Result(result=codes.ALREADY_IN_TARGET_STATE, error_message=f"already {state.value}")
        elif target == SimulationState.STATE_QUITTING:
            self._worker.state = State.QUITTING
            self._quit()
            response.result.result = Result.RESULT_OK
        elif state not in (State.PLAYING, State.PAUSED, State.STOPPED):
            response.result = _incorrect(state)
        else:
            job = {
                SimulationState.STATE_PLAYING: self._worker.play,
                SimulationState.STATE_PAUSED: self._worker.pause,
                SimulationState.STATE_STOPPED: self._halt,
            }.get(target)
            if job is None:
                response.result = Result(
                    result=codes.INCORRECT_TRANSITION, error_message=f"state {target} cannot be asked for"
                )
            else:
                response.result = _outcome(self._worker.ask(job))
        return response

    def _step(self, request, response):
        state = self._worker.state
        if state is not State.PAUSED:
            response.result = Result(
                result=Result.RESULT_OPERATION_FAILED,
                error_message=f"simulation is {state.value}; set STATE_PAUSED before stepping",
            )
        elif request.steps > MOST_STEPS:
            response.result = Result(
                result=Result.RESULT_OPERATION_FAILED, error_message=f"at most {MOST_STEPS} steps at once"
            )
        else:
            response.result = self._step_by(int(request.steps))
        return response

    def _step_by(self, steps: int) -> Result:
        ended = self._step_in_hand = threading.Event()
        worker = self._worker
        # The state is looked at again when its turn comes: a change that was asked for before may be under way.
        future = worker.ask(lambda: worker.step(steps, ended) if worker.state is State.PAUSED else 0)
        result = _outcome(future)
        self._step_in_hand = None
        if result.result == Result.RESULT_OK and (shown := future.result()) < steps:
            return Result(result=Result.RESULT_OPERATION_FAILED, error_message=f"ended after {shown} of {steps} steps")
        return result

    def _end_step(self) -> bool:
        """End the step in progress, if there is one; whether there was."""
        ended = self._step_in_hand
        if ended is not None:
            ended.set()
        return ended is not None

    def _reset_simulation(self, request, response):
        state = self._worker.state
        everything = request.scope == ResetSimulation.Request.SCOPE_DEFAULT
        world = everything or bool(request.scope & ResetSimulation.Request.SCOPE_STATE)
        time = everything or bool(request.scope & ResetSimulation.Request.SCOPE_TIME)
        if state not in (State.PLAYING, State.PAUSED, State.STOPPED):
            response.result = _incorrect(state)
        elif not (world or time):
            response.result = Result(
                result=Result.RESULT_FEATURE_UNSUPPORTED, error_message="nothing is spawned here; use TIME or STATE"
            )
        else:
            self._end_step()
            response.result = _outcome(self._worker.ask(lambda: self._reset(world, time)))
        return response


def _incorrect(state: State) -> Result:
    return Result(result=Result.RESULT_INCORRECT_STATE, error_message=f"simulation is {state.value}")


def _outcome(future: Future[Any]) -> Result:
    """Wait for the world thread."""
    try:
        future.result()
    except CancelledError:
        return Result(result=Result.RESULT_OPERATION_FAILED, error_message="simulation is ending")
    except Exception as error:
        return Result(result=Result.RESULT_OPERATION_FAILED, error_message=str(error))
    return Result(result=Result.RESULT_OK)
