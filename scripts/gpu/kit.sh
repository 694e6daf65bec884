#!/usr/bin/env bash
# Pack what a GPU machine without a network lacks into .gpukit/, which git ignores.
#
#     bash scripts/gpu/kit.sh [--python 3.12] [--cuda 130] [--with PACKAGE ...]
#                             [--data FOLDER] [--nanogpt CHECKOUT]
#
# There: `bash scripts/gpu/run.sh`. That machine (Linux, x86-64) must have torch 2.11 or later and
# what comes with it, see IMAGE in scripts/gpu/pack.py; --with packs one of those, too. --cuda is the
# version of torch's CUDA, for bitsandbytes' library. --data is the folder of scripts/benchmark.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=3.12 cuda=130 data="" nanogpt="" also=()
while [ $# -gt 0 ]; do
    case $1 in
        --python) python=$2; shift 2 ;;
        --cuda) cuda=$2; shift 2 ;;
        --with) also+=("$2"); shift 2 ;;
        --data) data=$2; shift 2 ;;
        --nanogpt) nanogpt=$2; shift 2 ;;
        *) sed -n '2,9p' "$0" >&2; exit 2 ;;
    esac
done
[ -z "$data" ] || [ -d "$data/gpt2_tokenizer" ] || { echo "$data has no gpt2_tokenizer" >&2; exit 2; }
[ -z "$nanogpt" ] || [ -f "$nanogpt/train.py" ] || { echo "$nanogpt has no train.py" >&2; exit 2; }
[ -x .venv/bin/python ] || { echo "there is no .venv: bash scripts/test.sh makes it" >&2; exit 2; }

work=$(mktemp -d)
mkdir "$work/kit"
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
pip=(.venv/bin/python -m pip)
.venv/bin/python scripts/gpu/pack.py list --python "$python" "${also[@]/#/--with=}" > "$work/pins"

platforms=()
for number in 39 35 34 31 28 27 24 17 12 5; do
    platforms+=(--platform "manylinux_2_${number}_x86_64")
done
for name in manylinux2014 manylinux2010 manylinux1; do platforms+=(--platform "${name}_x86_64"); done
abi=cp${python/./}
grep -v '^rouge' "$work/pins" > "$work/binary"
"${pip[@]}" download --quiet --no-deps --only-binary=:all: --dest "$work/wheels" \
    --python-version "$python" --implementation cp --abi "$abi" --abi abi3 --abi none \
    "${platforms[@]}" --requirement "$work/binary"
# Only as source, which is pure Python
grep '^rouge' "$work/pins" > "$work/source"
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "$work/wheels" --requirement "$work/source"
.venv/bin/python scripts/gpu/pack.py unpack "$work/wheels" "$work/site" --cuda "$cuda"

pack() { # NAME FOLDER FILE...
    local name=$1 folder=$2
    shift 2
    XZ_OPT=-T0 tar -C "$folder" --sort=name --owner=0 --group=0 -cJf "$work/kit/$name.tar.xz" "$@"
}
pack site "$work/site" .
[ -z "$data" ] || pack data "$data" shakespeare sst2 xquad gpt2_tokenizer
[ -z "$nanogpt" ] || pack nanogpt "$nanogpt" train.py model.py configurator.py LICENSE
rm -rf .gpukit # only now, so that there never is half a kit
mv "$work/kit" .gpukit
du -h .gpukit/*
