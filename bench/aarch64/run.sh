#!/usr/bin/env bash
# Build fastloss for aarch64 on another machine, run its kernel tests there under emulation, and
# count the instructions of its hot loops. Nothing is timed: an emulator's times say nothing.
#
#   bench/aarch64/run.sh [FOLDER]      by default build/aarch64, kept for the next time
#
# Needs a Debian or Ubuntu with
#   apt install debootstrap gcc-aarch64-linux-gnu qemu-user qemu-user-static gcc cmake ninja-build
# and an environment with `pip install cython cython-cmake`. It does the following:
#
#   1. a Debian for arm64, unpacked and never entered, with Python and the OpenMP runtime
#   2. NumPy and the tests' libraries, as wheels for aarch64
#   3. the kernels, cross-compiled by CMakeLists.txt
#   4. the tests of the kernels, by the emulated Python
#   5. instructions per element, by a plugin of the emulator
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
mkdir -p "${1:-$tree/build/aarch64}"
folder=$(cd "${1:-$tree/build/aarch64}" && pwd)
root=$folder/root
python=$root/usr/bin/python3.11
tests=(
    test_vecmath test_cross_entropy test_softmax_options test_binary test_nll_loss test_divergence
    test_special test_special_values test_score_samples test_second_order test_linear
    test_streaming test_determinism test_levels
)

step() { printf '\n==> %s (%d s)\n' "$*" "$SECONDS"; }

step "a Debian for arm64"
if [ ! -x "$python" ]; then
    debootstrap --foreign --arch=arm64 --variant=minbase \
        --include=python3,python3-dev,libgomp1 bookworm "$root" >"$folder/debootstrap.log"
    for package in "$root"/var/cache/apt/archives/*.deb; do
        dpkg -x "$package" "$root"
    done
fi

step "libraries for aarch64"
python3 -m pip install --quiet --upgrade --target "$folder/site" --only-binary=:all: \
    --python-version 3.11 --implementation cp --platform manylinux2014_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    numpy scipy ml_dtypes pytest hypothesis mpmath psutil threadpoolctl

step "cross-compile"
modules=$(python3 -c 'import cython_cmake, pathlib; print(pathlib.Path(cython_cmake.__file__).parent / "cmake")')
cmake -S "$tree" -B "$folder/cmake" -G Ninja --log-level=WARNING \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_C_FLAGS="-I$root/usr/include" \
    -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64-static;-L;$root" -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$python" -DPython_INCLUDE_DIR="$root/usr/include/python3.11" \
    -DSKBUILD_SABI_COMPONENT=Development.SABIModule -DSKBUILD_SABI_VERSION=3.11 \
    -DCYTHON_EXECUTABLE="$(command -v cython)" -DCMAKE_MODULE_PATH="$modules"
cmake --build "$folder/cmake"
rm -rf "$folder/fastloss"
cp -r "$tree/src/fastloss" "$folder/fastloss"
find "$folder/fastloss" -name '*.so' -delete
cmake --install "$folder/cmake" --prefix "$folder" >/dev/null

export PYTHONPATH=$folder:$folder/site PYTHONHASHSEED=0
unset FASTLOSS_ISA
emulated() { qemu-aarch64-static -L "$root" "$python" "$@"; }
emulated -m fastloss

step "tests"
cd "$tree"
emulated -m pytest -q -p no:cacheprovider $(printf 'tests/%s.py ' "${tests[@]}")

step "instructions per element"
gcc -O2 -Wall -Wextra -Werror -shared -fPIC "$here/count.c" -o "$folder/count.so"
export OMP_NUM_THREADS=1
python3 "$here/count.py" qemu-aarch64 -L "$root" -plugin "$folder/count.so" "$python"
