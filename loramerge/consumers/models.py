"""Which model an adapter is for, as far as its files tell: servers have no place for adapters of every model.

A family is told by the class that a config names, by the name of the base, or by the names of its modules.
What each server has a place for is from vLLM's table of supported models and llama.cpp's table of converters;
a family that stands in neither cannot be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one class.

    Args:
        title: how it is called.   classes: its classes in transformers.
        base: how names of its models begin.   modules: how paths in it begin, where they tell.
    """

    title: str
    classes: str
    base: str = ""
    modules: str = ""

    def is_class(self, name: str) -> bool:
        """Whether a class is one of it."""
        return re.fullmatch(self.classes, name) is not None

    def named(self, base: str) -> bool:
        """Whether the name of a base is one of it."""
        last = base.replace("\\", "/").rstrip("/").rpartition("/")[2]
        return bool(self.base) and re.match(self.base, last, re.IGNORECASE) is not None

    def holds(self, path: str) -> bool:
        """Whether a module path is one that only it has."""
        return bool(self.modules) and re.match(self.modules, path) is not None


def _causal(names: str) -> str:
    return f"(?:{names})(?:ForCausalLM|LMHeadModel)"


PLAIN = "plain"  # decoders with the names of Llama, which servers of adapters have a place for
SERVED = "served"  # others with a tick in the column LoRA of vLLM's table
FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        "GPT-2", "GPT2.*", r"(distil)?gpt-?2|dialogpt", r"(transformer\.)?h\.\d+\.(attn\.c_|mlp\.c_)"
    ),
    "bloom": Family("Bloom", "Bloom.*", r"bloomz?\b"),
    "falcon": Family("Falcon", "FalconFor.*|FalconModel|RWFor.*", r"falcon-(rw-)?(1b|7b|11b|40b|180b)"),
    "falcon_mamba": Family("Falcon Mamba", _causal("FalconMamba"), "falcon-mamba"),
    "gptj": Family("GPT-J", "GPTJ.*", r"gpt-?j\b", r"transformer\.h\.\d+\.(attn\.(q|k|v|out)_proj|mlp\.fc_)"),
    "gpt_neox": Family(
        "GPT-NeoX", "GPTNeoX.*", "gpt-neox|pythia|dolly-v2|stablelm-tuned", r"gpt_neox\.layers\."
    ),
    "mpt": Family("MPT", "MPTFor.*|Mpt.*", r"mpt-\d+b", r"transformer\.blocks\.\d+\.(attn\.Wqkv|ffn\.)"),
    "stablelm": Family("StableLM", _causal("StableLm|StableLMEpoch"), "stablelm|stable-code"),
    "orion": Family("Orion", _causal("Orion"), r"orion-\d"),
    "olmoe": Family("OLMoE", _causal("Olmoe"), "olmoe"),
    "flex_olmo": Family("FlexOlmo", _causal("FlexOlmo"), "flexolmo"),
    "gemma3n": Family("Gemma 3n", _causal("Gemma3n"), "gemma-3n"),
    "dbrx": Family("DBRX", _causal("Dbrx"), "dbrx"),
    "arctic": Family("Arctic", _causal("Arctic"), "snowflake-arctic-(base|instruct)"),
    "mamba": Family("Mamba", _causal("Mamba2?"), r"mamba2?-(\d|codestral)"),
    "kimi_linear": Family("Kimi Linear", _causal("KimiLinear"), "kimi-linear"),
    "exaone_moe": Family("K-EXAONE", _causal("ExaoneMoe"), "k-exaone"),
    "jais2": Family("Jais 2", _causal("Jais2"), "jais-2"),
    "mimo_v2": Family("MiMo-V2", _causal("MiMoV2(Flash)?"), "mimo-v2"),
    "zamba2": Family("Zamba 2", _causal("Zamba2"), "zamba2"),
    "step3": Family("Step 3.5", _causal("Step3p5"), r"step-3\.5"),
    "deepseek_v4": Family("DeepSeek-V4", _causal("DeepseekV4"), "deepseek-v4"),
    "minimax_m3": Family("MiniMax-M3", _causal("MiniMaxM3Sparse"), "minimax-m3"),
    "opt": Family("OPT", "OPTFor.*", r"opt-[\d.]+[mb]\b", r"model\.decoder\.layers\.\d+\.(self_attn|fc)"),
    SERVED: Family(
        "a model of vLLM's table",
        _causal(
            "ChatGLM|Cohere2?|Cohere2Moe|Deepseek|DeepseekV2|DeepseekV3|DeepseekV32|Ernie4_5|Ernie4_5_Moe|"
            "Exaone4?|FalconH1|Glm4?|Glm4Moe|GptOss|GraniteMoe|GPTBigCode|InternLM[23]|Jamba|Lfm2|Lfm2Moe|"
            "MiniCPM3?|Nemotron|NemotronH|PhiMoE|Phi|Qwen3Next|SeedOss|Starcoder2"
        ),
        r"c4ai-command|deepseek-(llm|v2|v3|r1$|coder-v2)|exaone-[34]|falcon-h1|glm-4|gpt-oss|internlm[23]-|"
        r"jamba|lfm2-|minicpm-\db|phi-(1_5|2$)|starcoder2-|qwen3-next|seed-oss",
    ),
    PLAIN: Family(
        "Llama and its kin",
        _causal(
            "Llama|Mistral|Mixtral|Qwen2|Qwen2Moe|Qwen3|Qwen3Moe|Gemma[234]?|Phi3|Granite|Olmo[23]?|SmolLM3"
        ),
        r"(meta-)?(code)?llama-?[\d-]|tinyllama|mi[sx]tral-|qwen[123][.\-]?\d*-\d|qwq|gemma-[\d.]+-?\d*b|smollm|"
        r"phi-[34]|olmo-[\d-]+|granite-3",
        r"(model\.|language_model\.)*layers\.\d+\.(self_attn\.([qkvo]|qkv)_proj|mlp\.(experts\.(\d+\.)?)?"
        r"(gate|up|down|gate_up)_proj)$",
    ),
}
UNSERVED = frozenset(FAMILIES) - {"opt", SERVED, PLAIN}  # without a tick there

# What transformers 5 has renamed in these models, and not in others that have the same names.
OLD_VISION = re.compile(
    r"(?P<model>\w+\.)?encoder\.layer\.\d+\.(attention\.attention\.(query|key|value)|attention\.output\.dense"
    r"|intermediate\.dense)"
)
RENAMED = re.compile(
    r"(google/)?(vit|deit|beit|ast|vivit|dinov2|audio_spectrogram)(?=[-_.A-Z]|$)", re.IGNORECASE
)
KEPT = re.compile(r"dpt|data2vec|videomae|yolos", re.IGNORECASE)


def family(config: Mapping[str, Any], architectures: Iterable[str], paths: Iterable[str]) -> str | None:
    """The key of the family in `FAMILIES`; None if nothing tells it.

    >>> family({"base_model_name_or_path": "openai-community/gpt2-medium"}, [], [])
    'gpt2'
    >>> family({}, [], ["model.layers.0.self_attn.q_proj"]), family({}, [], ["blocks.0.q"])
    ('plain', None)
    """
    said = classes(config, architectures)
    if said:
        return next((key for key, one in FAMILIES.items() if one.is_class(said[0])), None)
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and (found := next((k for k, one in FAMILIES.items() if one.named(base)), None)):
        return found
    listed = list(paths)
    return next((key for key, one in FAMILIES.items() if any(map(one.holds, listed))), None)


def classes(config: Mapping[str, Any], architectures: Iterable[str]) -> list[str]:
    """The classes of the model that its files name."""
    mapping = config.get("auto_mapping")
    own = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    return [*architectures, *([own] if isinstance(own, str) else [])]


def renamed(config: Mapping[str, Any], architectures: Iterable[str], paths: Iterable[str]) -> bool | None:
    """Whether transformers 5 calls modules of a vision model otherwise; None if it may.

    >>> renamed({}, ["ViTForImageClassification"], ["vit.encoder.layer.0.attention.attention.query"])
    True
    """
    old = [found for path in paths if (found := OLD_VISION.fullmatch(path))]
    if not any("attention.attention" in found[0] for found in old):
        return False
    base = config.get("base_model_name_or_path")
    said = [*classes(config, architectures), *([base.rpartition("/")[2]] if isinstance(base, str) else [])]
    said += [str(found["model"]) for found in old if found["model"]]
    if any(map(KEPT.search, said)):
        return False
    return True if any(map(RENAMED.match, said)) else None
