"""Microsoft's loralib, the first LoRA: state dicts with `<module>.lora_A` and `.lora_B`, no alpha.

    Linear, Embedding   lora_A (r, in), lora_B (out, r); ΔW = alpha/r · B @ A
    MergedLinear        lora_A (r·k, in), lora_B (out·k/n, r): k of n equal parts of the outputs, as of q, k
                        and v in one layer; part g is B[part g] @ A[r·g : r·(g+1)], the other parts are zero
    Conv2d              lora_A (r·K, in·K), lora_B (out·K, r·K): refused, since no file tells the kernel K

(loralib/layers.py.) Alpha, and which parts are adapted, only the training script knows. The file is read as a
bare one with PEFT's names is: alpha from a JSON file beside it, or from the user. `enable_lora` only there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from loramerge.adapters.adapter import Adapter, Tensor
from loramerge.errors import IncompatibleError, SourceError, printable
from loramerge.formats.dialects.dialect import Dialect, Header
from loramerge.formats.files.views import Reshaped
from loramerge.formats.peft.alpha import check_tensors, given, of_bare_file
from loramerge.formats.peft.beside import EMBEDDINGS
from loramerge.formats.peft.names import PREFIX, parse
from loramerge.formats.peft.pairs import sort_tensors
from loramerge.formats.peft.read import updates

FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])", re.DOTALL)
ADAPTIVE = ".lora_E"  # AdaLoRA's factors have the same names, beside a third one
CONV = re.compile(r"conv\w*", re.IGNORECASE)


class Loralib(Dialect):
    """State dicts of loralib, as `lora_state_dict` gives them."""

    name = "loralib"
    words = "a loralib state dict"
    tools = "Microsoft's loralib"
    spelling = "`<module>.lora_A`, `<module>.lora_B`, without `.weight`"
    strength = "`alpha/r`, as for one file of PEFT's names"
    kinds = ("linear", "embedding")

    def detects(self, header: Header) -> bool:
        keys = header.tensors
        found = [match["path"] for key in keys if (match := FACTOR.fullmatch(key))]
        if any(path.endswith(".lora") for path in found):  # SoRA's
            return False
        return bool(found) and not any(key.endswith(ADAPTIVE) for key in keys)

    def read(self, header: Header) -> Adapter:
        stored = sort_tensors(_as_peft(header.tensors, header.name), header.name, header.base)
        said = of_bare_file(header.file, stored)
        unused = header.unused_alpha() if said else []
        pairs, scale_of, config = said or given(header.file, stored, header.alpha)
        check_tensors(scale_of, pairs, header.name)
        slots, biases = updates(pairs, scale_of, config)
        return header.adapter(
            self,
            slots,
            extras=pairs.extras,
            biases=biases,
            oddities=unused,
            said_alpha=said is not None,
        )


LORALIB = Loralib()


def _as_peft(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under PEFT's names, as PEFT's first versions had them."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        found = FACTOR.fullmatch(key)
        if found is None:
            _check_other(key, name)
            renamed[PREFIX + key] = tensor
            continue
        path, side = found["path"], found["side"]
        _check_place(path, tensors, name)
        embedding = path.rpartition(".")[2] in EMBEDDINGS and path.rpartition(".")[2] != "lm_head"
        own = f"{PREFIX}{path}.lora_embedding_{side}" if embedding else f"{PREFIX}{path}.lora_{side}.weight"
        down, up = (tensors[f"{path}.lora_{each}"] for each in "AB")
        merged = side == "B" and len(up.shape) == len(down.shape) == 2 and up.shape[1] < down.shape[0]
        renamed[own] = _grouped(tensor) if merged else tensor
    return renamed


def _check_other(key: str, name: str) -> None:
    if parse(key) is not None:
        raise IncompatibleError(
            f"{printable(name)} mixes names of loralib with those of PEFT ({printable(key, 80)}): save each "
            "adapter by itself."
        )


def _check_place(path: str, tensors: Mapping[str, Tensor], name: str) -> None:
    for side in "AB":
        if f"{path}.lora_{side}" not in tensors:
            raise SourceError(
                f"{printable(path)}.lora_{side} is missing in {printable(name)}: the file was cut or badly "
                "saved."
            )
    if CONV.fullmatch(path.rpartition(".")[2]):
        raise IncompatibleError(
            f"{printable(path)} in {printable(name)} looks like a convolution of loralib. The file does not "
            "tell its kernel, so its factors mean nothing: save it with PEFT, or take it out of the file."
        )


def _grouped(up: Tensor) -> Tensor:
    """The factor of a MergedLinear: a convolution in groups, as PEFT's first versions stored it."""
    return Reshaped(up, (*up.shape, 1))
