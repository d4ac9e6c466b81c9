#!/usr/bin/env bash
# Installs the system packages a group needs, with apt when root; otherwise names them in one line.
#   scripts/system-packages.sh build|desktop|window|sanitize|arm
set -eu

missing=()
need_program() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need_library() { ldconfig -p 2>/dev/null | grep -q "$1" || missing+=("$2"); }

case "${1:-}" in
build)
  need_program c++ g++
  need_program git git
  python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
  ;;
desktop)
  need_library libglib-2.0.so.0 libglib2.0-0
  need_library libGL.so.1 libgl1
  need_library libEGL.so.1 libegl1
  need_library libfontconfig.so.1 libfontconfig1
  need_library libdbus-1.so.3 libdbus-1-3
  need_library libxkbcommon.so.0 libxkbcommon0
  [ -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ] || missing+=(fonts-dejavu-core)
  ;;
window)
  need_library libxcb-cursor.so.0 libxcb-cursor0
  need_library libxcb-icccm.so.4 libxcb-icccm4
  need_library libxcb-keysyms.so.1 libxcb-keysyms1
  need_library libxcb-shape.so.0 libxcb-shape0
  need_library libxkbcommon-x11.so.0 libxkbcommon-x11-0
  ;;
sanitize)
  for kind in address,undefined thread; do
    echo 'int main() {}' | c++ -fsanitize=$kind -x c++ -o /dev/null - 2>/dev/null ||
      missing=("libgcc-$(c++ -dumpversion | cut -d. -f1)-dev")
  done
  ;;
arm)
  need_program aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
  need_program qemu-aarch64-static qemu-user-static
  ;;
*)
  echo "usage: $0 build|desktop|window|sanitize|arm" >&2
  exit 2
  ;;
esac

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing system packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "missing system packages; install them first: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
