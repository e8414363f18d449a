"""WavLLM: transposed pairs in its language model; for a fixed prompt with a gate on the outputs. Read only.

    ΔW = α/r · diag(g) (A B)ᵀ        <layer>.attention.w{q,k,v,o}_lora_A (in, r), _lora_B (r, out)

In the second stage g depends on the prompt. Then `--prompt-gate` gives that of one prompt: a .safetensors or
.npz of vectors by module, or of one for all. (arXiv:2404.00656)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from loramerge.adapters.adapter import Adapter, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.dialects.pairs import once, slots
from loramerge.formats.files.views import View, transposed
from loramerge.formats.routers import way

KEY = re.compile(r"(?P<path>.+\.w[qkvo])_lora_(?P<side>[AB])(?:\.weight)?", re.DOTALL)
GATED = re.compile(r".*scale_fc_\w+.*", re.DOTALL)  # what computes the gate of a prompt


class WavLlm(Dialect):
    name = "wavllm"
    words = "a WavLLM state dict"
    tools = "WavLLM"
    spelling = "`layers.N.attention.wq_lora_A`, `…_lora_B`, both transposed"
    strength = "`alpha/r`; the alpha is yours to say (32 in the published model)"
    kinds = ("linear",)

    def detects(self, header: Header) -> bool:
        return any(KEY.fullmatch(key) for key in header.tensors)

    def read(self, header: Header) -> Adapter:
        modules, extras = dict[str, dict[str, Tensor]](), dict[str, Tensor]()
        for key, tensor in header.tensors.items():
            if (found := KEY.fullmatch(key)) is None:
                extras[key] = tensor
                continue
            side = "down" if found["side"] == "A" else "up"
            flat = transposed(tensor) if len(tensor.shape) == 2 else tensor
            once(modules, found["path"], side, flat, header.name)
        routed = [key for key in extras if GATED.fullmatch(key)]
        if routed and header.gate is None:
            raise IncompatibleError(
                f"{printable(header.name)} weighs its outputs by the prompt ({printable(routed[0], 60)}), so "
                f"that it is no one update: give the gate of a fixed prompt by {say('prompt_gate', 'FILE')}. "
                f"Or {way(header.name, scaled=False)}"
            )
        found_slots = slots(header, modules)
        if header.gate is not None:
            found_slots = {t: _gated(t, slot, header.gate) for t, slot in found_slots.items()}
        kept = {key: tensor for key, tensor in extras.items() if key not in routed}
        return header.adapter(self, found_slots, extras=kept, said_alpha=False)


def _gated(target: Target, slot: Slot, gate: Mapping[str, Array]) -> Slot:
    """The update with its outputs weighed."""
    found = gate.get(target.path)
    if found is None and len(gate) == 1:
        found = next(iter(gate.values()))
    if found is None or found.reshape(-1).shape != (slot.shape[0],) or not np.isfinite(found).all():
        shown = "none" if found is None else list(found.shape)
        raise SourceError(
            f"The prompt gate of {printable(target)} must be {slot.shape[0]} numbers, not {shown}."
        )
    values = found.astype(np.float64).reshape(-1, 1)

    def up(array: Array) -> Array:
        return (array.astype(np.float64) * values).astype(array.dtype)

    return Slot(View((slot.up,), slot.up.shape, slot.up.dtype, up), slot.down, slot.scale)


WAVLLM = WavLlm()
