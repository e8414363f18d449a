#!/usr/bin/env bash
# Two adapters into one, on a laptop: look, merge, compare, check.
set -euo pipefail

loramerge inspect fixtures/a.safetensors fixtures/b.safetensors
loramerge combine fixtures/a.safetensors fixtures/b.safetensors --method ties --scale norm -o laptop
loramerge diff fixtures/a.safetensors laptop
loramerge check laptop --for peft
