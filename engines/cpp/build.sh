#!/usr/bin/env bash
# Builds libaccelaes, its engine formats and examples, and installs them: ./build.sh [PREFIX [OPTIONS OF CMAKE...]]
#
# Debian and Ubuntu: apt-get install cmake ninja-build g++ pkg-config nlohmann-json3-dev libutf8proc-dev libpcre2-dev,
# for the examples libstb-dev and libcpp-httplib-dev as well.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
prefix=${1:-$here/installed}
cmake -S "$here" -B "$here/build" -G Ninja "${@:2}"
cmake --build "$here/build"
cmake --install "$here/build" --prefix "$prefix"
