# make run    start the world and its ROS 2 topics: make run VIDEO=clip.mp4 GENERATOR=star ARGS="size:=320x480"
# make test   run the tests; ARGS goes to pytest. make test-all adds the slow ones
# make lint   check the style;  make clean removes what was built;  make distclean also .venv and .ros
#
# The first call sets everything up: .venv, pinned packages, ROS 2 (ROS=none does without). PYTHON=... names a Python 3.12.

export ARGS GENERATOR PYTHON ROS VIDEO
VENV_PYTHON := .venv/bin/python

.PHONY: help run test test-all lint clean distclean setup
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

setup:
	@python=$$(scripts/find_python.sh) && exec "$$python" scripts/set_up.py

run: setup
	@exec $(VENV_PYTHON) scripts/run.py

test: setup
	@exec $(VENV_PYTHON) -m pytest $(ARGS)

test-all: setup
	@exec $(VENV_PYTHON) -m pytest -m "slow or not slow" $(ARGS)

lint: setup
	@exec $(VENV_PYTHON) -m ruff check .

clean:
	rm -rf build *.egg-info ros2_ws/build ros2_ws/install ros2_ws/log ros2_ws/src/inspatio_ros/*.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -not -path './.ros/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .ros .cache
