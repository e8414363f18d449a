"""How many layers the model has by its own config, and sources that adapt a layer which it cannot have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loramerge.adapters.adapter import Adapter
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.models.stems import layered, parted, place

COUNTS = ("num_hidden_layers", "n_layer", "n_layers")
MORE = "num_nextn_predict_layers"  # layers behind the last, which guess tokens ahead


def check(adapters: Sequence[Adapter], allowed: bool) -> None:
    """Raises IncompatibleError: a source adapts a layer that its own model, or another's, does not have."""
    said = {adapter.name: count for adapter in adapters if (count := _count(adapter.model))}
    if allowed or not said:
        return
    name = min(said, key=lambda each: said[each])
    numbered = (adapter for adapter in adapters if not adapter.config.get("layer_replication"))
    for adapter in numbered:
        for path, number in _layers(adapter):
            if number >= said[name]:
                raise IncompatibleError(
                    f"{printable(adapter.name)} adapts {printable(path)}, and the model of {printable(name)} "
                    f"has {said[name]} layers by its config.json: they are for models of other depth. If "
                    f"they are for one, add {say('allow_base_mismatch', True)}."
                )


def _count(config: Mapping[str, Any]) -> int:
    """The layers of its language model; 0 where the config does not say it.

    >>> _count({"text_config": {"num_hidden_layers": 24}}), _count({"model_type": "clip"})
    (24, 0)
    """
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    found = [part[key] + _more(part) for part in parts for key in COUNTS if type(part.get(key)) is int]
    return max(found, default=0)


def _more(part: Mapping[str, Any]) -> int:
    return part[MORE] if type(part.get(MORE)) is int else 0


def _layers(adapter: Adapter) -> Iterator[tuple[str, int]]:
    """The modules in the layers of a language model, and the numbers of these."""
    for target in adapter.slots:
        if target.component == "model" and layered(target.path) and not place(target.path)[0]:
            number = next((part for part in parted(target.path)[1].split(".") if part.isdigit()), None)
            if number is not None:
                yield target.path, int(number)
