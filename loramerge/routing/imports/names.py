"""The table of systems whose files bring their own gate."""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.routing.imports.dmoerm import DMoERM
from loramerge.routing.imports.flylora import FlyLoRA
from loramerge.routing.imports.lora_mixer import LoRAMixer
from loramerge.routing.imports.loramoe import LoRAMoE
from loramerge.routing.imports.meteora import MeteoRA
from loramerge.routing.imports.smora import SMoRA
from loramerge.routing.imports.system import System
from loramerge.routing.imports.wavllm import WavLLM

SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (MeteoRA(), LoRAMoE(), SMoRA(), LoRAMixer(), FlyLoRA(), WavLLM(), DMoERM())
}
