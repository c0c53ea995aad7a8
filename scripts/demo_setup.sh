# What scripts/demo and scripts/demo-moe share: folders, helpers and the embedded Hub. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SEED=${SEED:-0}
BUILD=${BUILD:-build} # a folder below the repository
export HUBMERGE_HUB=local
export HUBMERGE_HOME="$PWD/$BUILD/home" # instead of ~/.hubmerge: a demo has a Hub of its own
export OMP_NUM_THREADS=1 # a model this small is quicker on one thread

TASKS="mnist fashion hebrew texture"
NAMES="mini-mnist,mini-fashion,mini-hebrew,mini-texture"
LAST=${LAST:-1024}     # the length of the runs
BUDGET=${BUDGET:-200} # the merges that the search may measure
OUT=$BUILD/demo

exec 3>&1
show() { printf '\n$ %s\n' "$*" >&3; }
run() { # print a command, then run it
    show "$@"
    "$@"
}
say() { printf '\n== %s\n' "$*" >&3; }
each() { for item in $2; do printf "$1 " "$item"; done; } # each demo/%s "a b": demo/a demo/b
experts_at() { each "demo/%s@step$1" "$TASKS"; }
wait_for() { # wait for process $1; if it failed, print its log $2
    wait "$1" || { cat "$2" >&2; return 1; }
}

# The embedded Hub would come and go with every command; here it stays for all of them.
serve_hub() {
    hubmerge hub serve --quiet &
    local served=$!
    trap "kill $served 2>/dev/null || true; wait" EXIT
    until hubmerge hub status >/dev/null 2>&1; do sleep 0.2; done
}
