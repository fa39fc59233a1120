# Make the virtual environment $VENV (default .venv) with dualtail in it. Usage: . scripts/_venv.sh PIP_ARGUMENTS
VENV="${VENV:-.venv}"
PYTHON="${PYTHON:-python3}"
if ! [ -x "$VENV/bin/python" ]; then
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --upgrade pip
fi
echo "installing into $VENV (PyTorch is several GB the first time)" >&2
"$VENV/bin/python" -m pip install --quiet "$@"
