#!/usr/bin/env bash
# Try this project on a GPU, in one command: what is installed, short runs, the tests, where the time
# of a step goes, and the benchmark.
#
#     bash scripts/gpu/run.sh [STAGE ...]     # of: versions smoke tests profile bench
#
# It takes the python of the PATH and, where scripts/gpu/kit.sh made one, the kit in KIT (.gpukit).
# OUT (runs/gpu) is the folder for at most 8 files. SECONDS_IN_ALL (1200) bounds the whole, VERSIONS,
# SMOKE, TESTS, PROFILE and BENCH the stages. Without a kit, BENCH_DATA is the folder of
# scripts/benchmark.py, and NANOGPT a checkout. DEVICE=cpu tries the flow without a GPU.
# The exit code is 1 where a stage failed.
# shellcheck disable=SC2329  # stages are called by their names
set -u
[ $# -gt 0 ] || set -- versions smoke tests profile bench
for each in "$@"; do
    [[ $each =~ ^(versions|smoke|tests|profile|bench)$ ]] || { echo "no stage $each" >&2; exit 2; }
done
cd "$(dirname "$0")/../.." || exit 2
all=${SECONDS_IN_ALL:-1200}
root=$PWD
kit=${KIT:-$PWD/.gpukit}
export root DEVICE=${DEVICE:-cuda} OUT=${OUT:-$PWD/runs/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export work PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
config=$root/accelerate_configs/single_gpu.yaml little=""
if [ "$DEVICE" = cpu ]; then
    config=$root/accelerate_configs/cpu.yaml little=yes
    export CUDA_VISIBLE_DEVICES="" GPT2_RECIPES_TEST_DEVICE=cpu
fi
export config little

unpack() { # the kit to /tmp, where a second call finds it
    local unpacked
    unpacked=/tmp/gpukit-$(cat "$kit"/*.tar.xz | sha256sum | cut -c1-12)
    if [ ! -e "$unpacked/done" ]; then
        echo "## unpacking the kit to $unpacked"
        python3 - "$kit" "$unpacked" <<'PYTHON' || return 1
import sys, tarfile
from pathlib import Path

for file in Path(sys.argv[1]).glob("*.tar.xz"):
    with tarfile.open(file) as archive:
        archive.extractall(Path(sys.argv[2], file.name.removesuffix(".tar.xz")), filter="data")
PYTHON
        # Once, on all cores, what each process would compile for itself
        python3 -m compileall -q -j 0 -x 'transformers/models/(?!auto|gpt2)|nltk/' \
            "$unpacked/site" > /dev/null 2>&1
        touch "$unpacked/done"
    fi
    export PYTHONPATH=$unpacked/site:$PYTHONPATH KIT_SITE=$unpacked/site
    [ -d "$unpacked/data" ] && BENCH_DATA=${BENCH_DATA:-$unpacked/data}
    [ -d "$unpacked/nanogpt" ] && NANOGPT=${NANOGPT:-$unpacked/nanogpt}
    return 0
}

versions() {
    python3 "$root/scripts/gpu/versions.py"
    nvidia-smi 2> /dev/null || echo "no nvidia-smi"
}
cli() { python3 -m pipelines "$@"; }
launch() { python3 -m accelerate.commands.launch --config_file "$config" "$@"; }

smoke() { # the quickstart's runs as users start them; two at a time
    set -e
    local few=${SMOKE_STEPS:-300} failed=0 name
    cd "$work"
    python3 "$root/scripts/helpdesk_data.py" data/helpdesk
    launch "$root/recipes/helpdesk_pretrain.py" --train.max-steps "$few"
    launch "$root/recipes/helpdesk_classify_lora_8bit.py" --train.max-steps "$few" \
        > classify.log 2>&1 &
    local first=$!
    launch "$root/recipes/gpt2_squad_v2_lora_4bit.py" --name answer --train.max-steps "$few" \
        --task.dataset.path data/helpdesk/answer --task.dataset.eval-split test \
        --task.max-length 224 --task.stride 64 --model.name-or-path runs/helpdesk-pretrain \
        --train.global-batch-size 8 --train.learning-rate 2e-3 > answer.log 2>&1 &
    local second=$!
    wait "$first" || failed=1
    wait "$second" || failed=1
    tail -n 12 classify.log answer.log
    for name in helpdesk-pretrain helpdesk-classify-lora-8bit answer; do
        cli evaluate "runs/$name" > "$name.log" 2>&1 || { echo "evaluate $name: $?"; failed=1; }
        tail -n 4 "$name.log"
    done
    head -n 3 data/helpdesk/classify/test.jsonl > three.jsonl
    cli predict runs/helpdesk-classify-lora-8bit three.jsonl
    cli generate runs/helpdesk-pretrain "Hello, my order" --max-new-tokens 20
    return "$failed"
}

tests() { # only files that have such tests: others import what the kit has not
    local files
    mapfile -t files < <(grep -rl 'pytest\.mark\.gpu' "$root/tests" --include='test_*.py' | sort)
    python3 -m pytest -q -rfEs --color=no --durations=10 -p no:cacheprovider -m gpu "${files[@]}"
}

profile() {
    PROFILE_SECONDS=$((PROFILE - 30)) python3 "$root/scripts/gpu/profile.py"
}

bench() {
    rm -f "$OUT/bench.json"
    local options=(--suite gpu --json "$OUT/bench.json" --seconds $((BENCH - 10)))
    [ -n "${BENCH_DATA:-}" ] || { echo "no BENCH_DATA, and none in the kit"; return 1; }
    [ -z "${NANOGPT:-}" ] || options+=(--peer "nanogpt=$NANOGPT")
    [ -z "$little" ] || options+=(--device cpu --little)
    python3 "$root/scripts/benchmark.py" --data "$BENCH_DATA" "${options[@]}"
}
export -f versions cli launch smoke tests profile bench

export VERSIONS=${VERSIONS:-60} SMOKE=${SMOKE:-120} TESTS=${TESTS:-270}
export PROFILE=${PROFILE:-180} BENCH=${BENCH:-370} BENCH_DATA=${BENCH_DATA:-} NANOGPT=${NANOGPT:-}
failed=0
stage() { # NAME VARIABLE: run a stage, for no longer than its variable says and what is left
    local name=$1 left=$((all - SECONDS)) code start=$SECONDS
    [ "$left" -lt "${!2}" ] && export "$2=$left"
    if [ "$left" -lt 30 ]; then
        echo "## $name: no time left"
        failed=1
        return
    fi
    timeout -k 5 "${!2}" bash -c "$name" > "$OUT/$name.txt" 2>&1
    code=$?
    tail -n 60 "$OUT/$name.txt"
    echo "## $name: exit code $code after $((SECONDS - start)) s"
    [ "$code" = 0 ] || failed=1
}

if [ -e "$kit/site.tar.xz" ]; then
    unpack || exit 1
    export BENCH_DATA NANOGPT
    echo "## kit unpacked after $SECONDS s"
fi
for each in "$@"; do stage "$each" "${each^^}"; done
if ls "$OUT"/kernels_*.txt > /dev/null 2>&1; then
    (cd "$OUT" && tar -czf kernels.tar.gz --remove-files kernels_*.txt)
fi
echo "## done after $SECONDS s, in $OUT:"
ls "$OUT"
exit $failed
