# shellcheck shell=bash
# Sourced by demo.sh and test.sh: PYTHON is an environment that holds requirements.txt.
#
# Without PYTHON given it is .venv, made here; with PYTHON given, that one, and what it lacks is installed into it.

given="${PYTHON:-}"
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

if [ -z "$given" ]; then
  if [ ! -x .venv/bin/python ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail 5 "python3 of at least 3.11 is needed (or PYTHON=...)"
    # Without its pip a venv is half made: then .venv/bin/python goes, so that the next try makes it again.
    python3 -m venv .venv || {
      rm -f .venv/bin/python
      fail 5 "python3 cannot make a venv (on Debian: apt install python3-venv), or name a Python in PYTHON"
    }
  fi
  PYTHON=.venv/bin/python
fi
export PYTHON

# pip is asked again only when requirements.txt has changed since it was last satisfied.
stamp="$(dirname -- "$(command -v -- "$PYTHON" || true)")/../.dreamergpt-requirements"
if [ "$PYTHON" != echo ] && ! cmp -s requirements.txt "$stamp"; then
  "$PYTHON" -m pip install --disable-pip-version-check -r requirements.txt | { grep -v '^Requirement already' || true; } ||
    fail 5 "pip could not install requirements.txt"
  cp requirements.txt "$stamp" 2>/dev/null || true
fi
