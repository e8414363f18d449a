"""The short way that nearly all keys of PEFT take is the way of the pattern."""

import pytest

from loramerge.formats.peft import names

KEYS = [
    f"{start}{path}{end}"
    for start in ("", "base_model.model.", "base_model.model", ".")
    for path in ("", "h.0.q", "h.0.q.lora_A", "a\nb", "lora_A.weight", "base_model.model.q")
    for end in (".lora_A.weight", ".lora_B.weight", "lora_A.weight", ".lora_A.default.weight", ".weight")
]


@pytest.mark.parametrize("key", KEYS)
def test_a_plain_key_is_read_as_the_pattern_reads_it(key):
    found, wanted = names._NAME.fullmatch(key), None
    if found and (part := names._PARTS.get(f"{found['stem']}{found['end'] or ''}")):
        wanted = names.Name(found["path"], part, found["adapter"], found["prefix"] is not None)
    assert names.parse(key) == wanted
