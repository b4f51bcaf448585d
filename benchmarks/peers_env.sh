#!/bin/sh
# The peers' own environment: sh benchmarks/peers_env.sh [FOLDER]
# Then: FOLDER/bin/python benchmarks/peers.py, tiling.py and gpu.py
set -eu
folder="${1:-.venv-peers}"
root="$(cd "$(dirname "$0")/.." && pwd)"
extras=train
# gpu.py runs our engines, too.
if command -v nvidia-smi > /dev/null; then extras=train,cuda,tensorrt; fi
if command -v uv > /dev/null; then
    uv venv "$folder"
    VIRTUAL_ENV="$folder" uv pip install -e "$root[$extras]" monai einops torchio nnunetv2 torch_em
else
    python3 -m venv "$folder"
    "$folder/bin/python" -m pip install -e "$root[$extras]" monai einops torchio nnunetv2 torch_em
fi
