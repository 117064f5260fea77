#!/bin/sh
# Makes .venv and installs exactly what a lock file pins. Usage: deploy/make-venv.sh LOCK
set -eu
cd "$(dirname "$0")/.."
lock=$1
stamp=.venv/.installed-$(echo "$lock" | tr / -)

say() { echo "portcullis  $*"; }
fail() { echo "portcullis: $*" >&2; exit 1; }

if [ -e "$stamp" ] && cmp -s "$stamp" "$lock" && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

need='Portcullis needs Python 3.11 or newer with its venv module; on Debian or Ubuntu: apt install python3 python3-venv'
if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        # Debian has the module venv without the package python3-venv, but not ensurepip, which venv needs.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "$need"
    say "making .venv with $("$python" -V)"
    log=$("$python" -m venv --clear .venv 2>&1) || fail "$need ($(echo "$log" | tail -n 1))"
fi

total=$(grep -c '^[a-zA-Z0-9].*==' "$lock")
say "installing $total packages from $lock"
log=.venv/install.log
{
    status=0
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off --require-hashes \
        -r "$lock" 2>&1 || status=$?
    echo "$status" > .venv/install.status
} | tee "$log" | awk -v total="$total" '
    /^Collecting |^Requirement already satisfied: / { if (++n % 10 == 0) { printf "  %d of %d\n", n, total; fflush() } }
    /^Installing collected packages/ { print "  unpacking"; fflush() }'
if [ "$(cat .venv/install.status)" != 0 ]; then
    tail -n 15 "$log" >&2
    fail "the packages could not be installed; the whole output is in $log"
fi
cp "$lock" "$stamp"
