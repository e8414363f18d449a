#!/usr/bin/env bash
# Many adapters in a pipeline: a mean of fixed size, gates that stop a bad one (exit 4), facts for the next step.
set -euo pipefail

mkdir -p fleet
for number in $(seq 20); do
  cp "fixtures/$([ $((number % 2)) = 0 ] && echo a || echo b).safetensors" "fleet/$number.safetensors"
done

loramerge combine fleet --method average --size 100kB --max-lost 0.2 --min-cosine 0.3 \
  --for vllm --allow-unknown --json -o served > served.json
python3 -c "import json; facts = json.load(open('served.json')); print(facts['out'], facts['rank'], facts['sha256'])"
loramerge check served --for vllm || [ $? = 5 ]  # 5: the fixtures do not name their base model
