#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most ten minutes: the kernels' tests, the report, the
# other tests, the tiles.
#
#   benchmarks/gpu.sh FOLDER [SECONDS]
#
# FOLDER gets kernels.log, report.json, report.log, tests.log, tune.log, summary.txt and the tiles in
# cache/tiles: eight files at most, with install.log. A step that fails or runs out of its time is said
# to have, and the next one follows; what it found until then is in its files. One that is left out is
# told with its command. $PYTHON (python3) is used as it is where it has what these steps need; otherwise
# the summary names the first thing that is missing, and `make install` fetches it.
set -u

if [ $# -lt 1 ]; then
    echo "usage: $0 FOLDER [SECONDS]" >&2
    exit 2
fi
mkdir -p "$1" || exit 1
folder=$(cd "$1" && pwd)
seconds=${2:-570}
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
# No tile is timed before the report: its figures are those of the rule.
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 ADDERIZE_CACHE=$folder/cache
summary=$folder/summary.txt
: > "$summary"
failed=0

left() { echo $((seconds - SECONDS)); }

# step NAME MOST COMMAND...: at most MOST seconds, or what is left; its output goes to NAME.log.
step() {
    local name=$1 most=$2 start=$SECONDS status
    shift 2
    [ "$most" -le "$(left)" ] || most=$(left)
    if [ "$most" -le 0 ]; then
        status="left out for want of time; it is: ${*@Q}"
    else
        # Interrupted, pytest still writes what it has. (In the background shells ignore SIGINT.)
        timeout --signal=INT --kill-after=10 "$most" env --default-signal=INT "$@" \
            > "$folder/$name.log" 2>&1
        status="exit status $?"
    fi
    [ "$status" = "exit status 0" ] || failed=1
    echo "$name: $status, $((SECONDS - start)) s" | tee -a "$summary"
}

adderize() { echo 'import sys; from adderize.cli import main; sys.exit(main(sys.argv[1:]))'; }

needs='import torch, torchvision, lightning, timm, torchmetrics, safetensors, tqdm, filelock, yaml
import pytest, triton'
if ! missing=$("$python" -c "$needs" 2>&1); then
    echo "missing in $python: ${missing##*$'\n'}" | tee -a "$summary"
    # Where there is no network pip would go on trying for minutes.
    step install 200 env PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=15 make install PYTHON="$python"
    # Without a network: with what there is.
    .venv/bin/python -c "$needs" 2>> "$folder/install.log" && python=$PWD/.venv/bin/python
fi

# tests NAME MOST TEST...: without the checkout's conftest.py, which needs more to read the pages.
tests() {
    local name=$1 most=$2
    shift 2
    step "$name" "$most" "$python" -m pytest -m gpu -v --continue-on-collection-errors \
        --confcutdir=tests "$@"
}

mapfile -t kernels < <(grep -rl 'mark\.gpu' tests/ops)
mapfile -t others < <(grep -rl 'mark\.gpu' tests | grep -v '^tests/ops/')
tests kernels 150 "${kernels[@]}"
# Half a minute for the part that runs when the time is up, a minute for what follows.
most=$(left)
step report "$((most > 200 ? most - 60 : most))" "$python" -c "$(adderize)" bench gpu-report \
    -o "$folder/report.json" --budget $((most > 200 ? most - 100 : most / 2))
tests tests 150 "${others[@]}"
step tune 80 "$python" -c "$(adderize)" doctor --tune resnet18 --batch 128 --precision fp32 bf16
rm -f "$folder"/cache/tiles/*.lock "$folder"/*.unfinished
exit "$failed"
