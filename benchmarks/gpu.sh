#!/usr/bin/env bash
# What a GPU says: the suite's GPU tests, and the benchmarks of five networks, the most telling ones first.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

out=benchmarks/gpu
minutes=4
models='vit_large_patch16_224 resnet50 convnext_base vit_base_patch16_224 swin_base_patch4_window7_224'
modes='eager compiled'
distributions='uniform linear'
device=cuda
batch_size=''
img_size=224
max_seconds=6
tests=yes

usage() {
    cat <<END
Usage: bash benchmarks/gpu.sh [options]

Runs the suite's GPU tests, then \`timm-stochdepth bench --amp\` for each network at 224 pixels, convolutional ones in
channels_last: at a uniform rate of 0.4, and at linear rates of 0.1, 0.2 and 0.4, eager and compiled. Figures and
pictures go to a folder, one of each for a run. A run whose figures are there is not done again: what one call has no
time for is left to the next, and its names are printed. No run starts in the last half minute, and one that is not
done by the end is cut off.

  --out DIR              folder of the figures ($out)
  --minutes N            end after so many minutes ($minutes)
  --models 'NAME ...'    networks, in this order
                         (${models% * *}
                         ${models#"${models% * *}" })
  --modes 'MODE ...'     eager, compiled: all networks in one, then in the next ($modes)
  --distributions '...'  uniform, linear: the same within a mode ($distributions)
  --batch-size N         images in a batch (256, and 128 for vit_large)
  --img-size N           size of an image, in pixels ($img_size)
  --max-seconds N        seconds of timed steps in a run, and of those before ($max_seconds)
  --device NAME          cpu tries the script out where there is no GPU ($device)
  --no-tests             leave out the tests
  --help                 print this

Python is \$PYTHON, or python3, with this package's dependencies, matplotlib and pytest.
END
}

refuse() {
    echo "gpu.sh: $1" >&2
    exit 2
}

check_words() { # option, words, those that are allowed
    local word
    for word in $2; do
        [[ " $3 " == *" $word "* ]] || refuse "$1 must be some of $3, but got '$word'."
    done
}

while (($#)); do
    case $1 in
        --help) usage; exit ;;
        --no-tests) tests=no; shift; continue ;;
        --out | --minutes | --models | --modes | --distributions | --batch-size | --img-size | --max-seconds | --device)
            (($# > 1)) && [[ -n $2 ]] || refuse "$1 must have a value."
            name=${1#--}
            printf -v "${name//-/_}" %s "$2"
            shift 2 ;;
        *) refuse "unknown option '$1': see --help." ;;
    esac
done
for name in minutes batch_size img_size max_seconds; do
    [[ -z ${!name} || ${!name} =~ ^[1-9][0-9]{0,5}$ ]] ||
        refuse "--${name//_/-} must be a whole number from 1, but got '${!name}'."
done
check_words --modes "$modes" 'eager compiled'
check_words --distributions "$distributions" 'uniform linear'
check_words --device "$device" 'cuda cpu'

python=${PYTHON:-python3}
deadline=$((SECONDS + 60 * minutes))
"$python" -c 'import matplotlib, timm, torch, torchvision' ||
    refuse "$python must have torch, torchvision, timm and matplotlib."
if [[ $device == cuda ]]; then
    "$python" - <<'END' || refuse 'a GPU is needed, and torch finds none; --device cpu tries the script out.'
import sys

import torch

if not torch.cuda.is_available():
    sys.exit(1)
card = torch.cuda.get_device_properties(0)
print(f'{card.name}, {card.total_memory / 2 ** 30:.0f} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}')
END
fi

failed=()
left_out=()

run_tests() {
    if ! "$python" -c 'import pytest' 2> /dev/null; then
        failed+=('tests: no pytest')
        return
    fi
    local files parallel=()
    # most of their time is the compiler's, on the CPU
    ! "$python" -c 'import xdist' 2> /dev/null || parallel=(-n 8 --dist load)
    mapfile -t files < <(grep -rl --include='test_*.py' 'needs a GPU' tests)
    timeout $((deadline - SECONDS)) "$python" -m pytest -q -p no:cacheprovider -k gpu "${parallel[@]}" "${files[@]}" ||
        failed+=(tests)
}

stem() { # model, mode, distribution, rate: as timm-stochdepth bench names its files
    local name=$1_rate$4_${device}_amp
    [[ $1 == *vit* ]] || name+=_channels_last
    [[ $2 == eager ]] || name+=_compile
    [[ $3 == linear ]] || name+=_uniform
    echo "$name"
}

bench() { # model, mode, distribution
    local rates='0.1 0.2 0.4' rate missing=() options=() size=256
    [[ $3 == linear ]] || rates=0.4
    for rate in $rates; do
        [[ -e $out/$(stem "$1" "$2" "$3" "$rate").json ]] || missing+=("$rate")
    done
    ((${#missing[@]})) || return
    local left=$((deadline - SECONDS))
    if ((left < 30)); then
        left_out+=("$1 $2 $3 ${missing[*]}")
        return
    fi
    [[ $1 == *vit* ]] || options+=(--channels-last)
    if [[ $2 == compiled ]]; then
        options+=(--compile --rows dinov2 sample skip fixed block)
    else
        options+=(--rows again timm dinov2 sample skip fixed block)
    fi
    [[ $1 == *resnet* ]] || options+=(round) # where no norm looks at the batch
    [[ $1 != vit_large* ]] || size=128
    echo "== $1, $2, $3 ${missing[*]}, $left s left"
    timeout "$left" "$python" -m timm_stochdepth bench --model "$1" --rate "${missing[@]}" --distribution "$3" \
        --batch-size "${batch_size:-$size}" --img-size "$img_size" --max-seconds "$max_seconds" --max-rounds 100000 \
        --amp --device "$device" --out "$out" "${options[@]}"
    local code=$?
    for rate in "${missing[@]}"; do
        [[ ! -e $out/$(stem "$1" "$2" "$3" "$rate").json ]] || continue
        if ((code == 124)); then
            left_out+=("$1 $2 $3 $rate")
        else
            failed+=("$1 $2 $3 $rate")
        fi
    done
}

[[ $tests == no || $device == cpu ]] || run_tests
for mode in $modes; do
    for distribution in $distributions; do
        for model in $models; do
            bench "$model" "$mode" "$distribution"
        done
    done
done

echo "== $SECONDS s, figures in $out"
((${#left_out[@]} == 0)) || printf 'left out, the time is up: %s\n' "${left_out[@]}"
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
