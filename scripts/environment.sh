# Makes the virtual environment .venv; scripts/train and scripts/test read this file.
# Usage, from the repository's top: environment EXTRA…
# Quick when nothing has changed since: pyproject.toml, the pinned versions and the extras are remembered.

environment() {
  local extras wanted made=.venv/.made-from
  extras=$(printf '%s,' "$@")
  wanted=$(cat pyproject.toml scripts/constraints.txt scripts/environment.sh | cksum)
  if [ -x .venv/bin/python ] && [ -f "$made" ] && [ "$(head -n 1 "$made")" = "$wanted" ]; then
    if grep -qxF "${extras%,}" "$made"; then
      return
    fi
  elif [ -f "$made" ]; then
    rm "$made" # made from other versions
  fi
  if [ ! -x .venv/bin/python ]; then
    local python
    python=$(suitable_python) || {
      echo "error: no Python 3.11, 3.12 or 3.13 found on PATH; install one of them and try again" >&2
      exit 2
    }
    echo "making .venv with $python" >&2
    "$python" -m venv .venv
  fi
  echo "installing Crossent into .venv (minutes the first time; PyTorch is large)" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint scripts/constraints.txt --editable ".[${extras%,}]"
  [ -f "$made" ] || echo "$wanted" >"$made"
  echo "${extras%,}" >>"$made" # a line for each set of extras that has been installed
}

suitable_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    # Asked to run, not only looked up: version managers leave commands on PATH that start nothing.
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  return 1
}
