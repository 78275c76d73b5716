#!/bin/sh
# Print a Python 3.12 that runs: $PYTHON, the venv's own, python3.12 or python3 on PATH, or one of pyenv's.
cd "$(dirname "$0")/.." || exit 1
for python in "$PYTHON" .venv/bin/python python3.12 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
    # A pyenv shim may be on PATH and still refuse to run: only the answer counts.
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
        command -v "$python"
        exit 0
    fi
done
echo "No Python 3.12 found: install it, or name it by 'make PYTHON=/path/to/python3.12 ...'." >&2
exit 1
