"""TensorRT by itself: a script that builds an artifact's engine on the device it will run on, once.

An engine is made for one GPU and one version of TensorRT and cannot be shipped. (Through ONNX Runtime's
provider none of this is needed: `Runner(providers=("TensorRT",), cache=...)` keeps engines by itself.)
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence

from edgewright_device.artifact import Artifact
from edgewright_device.errors import ArtifactError
from edgewright_device.manifest import SYMMETRIC, WEIGHTS

# trtexec's options as its own documentation has them: --stronglyTyped and --skipInference are those of
# TensorRT 10; 8.x names the precisions and calls the second --buildOnly. From 8.6 on trtexec opens
# libnvinfer.so by itself (samples/trtexec/trtexec.cpp), so ldd lists none; its first line, "[TensorRT v8601]"
# or "v100300", has the major version (times 1000, from 10 on times 10000), and so the library's name.
_SCRIPT = r"""#!/bin/sh
# Builds the TensorRT engine of {name} for this device, and prints where it is. A second run finds it built.
# usage: sh {file} ARTIFACT CACHE
set -eu
[ $# -eq 2 ] || {{ echo "usage: sh $0 ARTIFACT CACHE" >&2; exit 2; }}
artifact=$1 cache=$2
model=$artifact/symmetric.onnx

trtexec=${{TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}}
trtexec=$(command -v "$trtexec" || echo "$trtexec")
[ -x "$trtexec" ] || {{
  echo "trtexec is not here; install TensorRT (apt install libnvinfer-bin), or set TRTEXEC to its path" >&2
  exit 2; }}
[ -f "$model" ] || {{ echo "$model: is not there" >&2; exit 2; }}
found=$(cat "$model" "$artifact/weights.safetensors" | sha256sum | cut -d' ' -f1)
[ "$found" = {digest} ] || {{
  echo "$artifact: is another artifact than this script was made for" >&2; exit 2; }}

made=$("$trtexec" --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9]*\)\].*/\1/p' | head -n 1)
case $made in
  ?????*) name=libnvinfer.so.${{made%????}} ;;
  ????) name=libnvinfer.so.${{made%???}} ;;
  *) echo "$trtexec: does not say which TensorRT it is of; does it start at all?" >&2; exit 2 ;;
esac
linked=$(ldd "$trtexec" 2>/dev/null | sed -n "s|.*$name => \(/[^ ]*\).*|\1|p" | head -n 1)
listed=$(PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null |
  sed -n "s|.*$name (.*=> \(/.*\)|\1|p" | head -n 1)
library=$(
  IFS=:
  for folder in ${{LD_LIBRARY_PATH:-}}; do
    if [ -e "$folder/$name" ]; then echo "$folder/$name"; exit; fi
  done
  echo "$listed")
version=$(readlink -f "${{linked:-$library}}" | sed -n 's/.*\.so\.\([0-9][0-9.]*\)$/\1/p' || true)
[ -n "$version" ] || {{
  echo "$name was not found, or has no version in its name; add its folder to LD_LIBRARY_PATH" >&2; exit 2; }}
if [ -r "${{DEVICE_TREE_MODEL:-/proc/device-tree/model}}" ]; then
  gpu=$(tr -d '\0' <"${{DEVICE_TREE_MODEL:-/proc/device-tree/model}}")
else
  gpu=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader | head -n 1)
fi
[ -n "$gpu" ] || {{ echo "no GPU was found, by the device tree or by nvidia-smi" >&2; exit 2; }}

key=$(printf '%s\n' "$found" "$gpu" "$version" {shapes} | sha256sum | cut -c1-32)
engine=$cache/{name}-$key.engine
if [ -s "$engine" ]; then echo "$engine"; exit 0; fi
case $version in
  8.*) options="--int8 --fp16 --buildOnly" ;;
  *) options="--stronglyTyped --skipInference" ;;
esac
mkdir -p "$cache"
part=$engine.$$.part  # of this process: another may build the same
trap 'rm -f "$part"' EXIT
trap 'exit 130' INT TERM HUP  # not every shell runs the other on a signal
# shellcheck disable=SC2086
"$trtexec" --onnx="$model" --saveEngine="$part" $options {shapes} \
  --timingCacheFile="$cache/timing.cache" >&2
mv "$part" "$engine"
echo "$engine"
"""


def build_script(artifact: Artifact, batches: Sequence[int] = (1, 1, 8)) -> str:
    """A POSIX shell script that builds the artifact's TensorRT engine into a cache.

    The name of an engine holds a digest of what it was built of and for: symmetric.onnx and the weights, the
    GPU, the version of TensorRT, the sizes of the batch. A cache may be shared, and nothing stale is found.

    Args:
        artifact: With symmetric.onnx.
        batches: The smallest, the usual and the largest batch.

    Raises:
        ArtifactError: It has no symmetric.onnx, or sequences of several lengths.
        ValueError: The batches are not three positive numbers in order.
    """
    if SYMMETRIC not in artifact.files:
        raise ArtifactError(f"{artifact.path}: has no {SYMMETRIC}; export it for a target with TensorRT")
    if artifact.lengths is not None:
        raise ArtifactError(f"{artifact.path}: has sequences of several lengths; an engine is built for one")
    least, usual, most = batches if len(batches) == 3 else (0, 0, 0)
    if not 0 < least <= usual <= most:
        raise ValueError("give the smallest, the usual and the largest batch, such as 1,8,32")
    shapes = [
        f"--{kind}Shapes="
        + ",".join(f"{p.name}:{'x'.join(map(str, (batch, *p.shape[1:])))}" for p in artifact.inputs)
        for kind, batch in (("min", least), ("opt", usual), ("max", most))
    ]
    digest = hashlib.sha256(artifact.read(SYMMETRIC) + artifact.read(WEIGHTS)).hexdigest()
    return _SCRIPT.format(
        name=artifact.name,
        file=f"{artifact.name}-engine.sh",
        digest=digest,
        shapes=" ".join(map(shlex.quote, shapes)),
    )
