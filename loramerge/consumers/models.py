"""Which model an adapter is for, as far as its files tell: servers have no place for adapters of every model.

The class is told by its config, by a config.json beside it, by the name of its base, or by the names of its
modules where only few classes have these. Names as those of Llama are in dozens of classes, and tell nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

CACHED = re.compile(r"models--[^/]+--(?P<name>[^/]+)")  # a folder in the cache of the Hub
UNTOLD = "?"  # the class of a row whose names tell that it is none of the classes below it
NAMES = r"""
GPT2LMHeadModel = (distil)?gpt-?2|dialogpt
BloomForCausalLM = bloomz?\b
FalconMambaForCausalLM = falcon-mamba
FalconH1ForCausalLM = falcon-h1
FalconForCausalLM = falcon-(rw-)?(1b|7b|11b|40b|180b)
LlamaForCausalLM = falcon-?3-\d+b
GPTJForCausalLM = gpt-?j\b
GPTNeoXForCausalLM = gpt-neox|pythia|dolly-v2|stablelm-(tuned|base)-alpha
GPTNeoForCausalLM = gpt-neo-[\d.]+[mb]\b
MPTForCausalLM = mpt-\d+b
StableLmForCausalLM = stablelm|stable-code
OrionForCausalLM = orion-\d+b
OlmoeForCausalLM = olmoe
FlexOlmoForCausalLM = flexolmo(-\d+x\d+b)?
DbrxForCausalLM = dbrx
ArcticForCausalLM = snowflake-arctic-(base|instruct)
MambaForCausalLM = mamba-[\d.]+[mb]\b
Mamba2ForCausalLM = mamba2?-codestral|mamba2-[\d.]+[mb]\b
KimiLinearForCausalLM = kimi-linear(-\d+b-a\d+b)?
ExaoneMoeForCausalLM = k-exaone(-\d+b-a\d+b)?
Jais2ForCausalLM = jais-2
MiMoV2FlashForCausalLM = mimo-v2-flash
Zamba2ForCausalLM = zamba2
Step3p5ForCausalLM = step-3\.5(-flash)?
DeepseekV4ForCausalLM = deepseek-v4
MiniMaxM3SparseForCausalLM = minimax-m3
OPTForCausalLM = opt-(125m|350m|1\.3b|2\.7b|6\.7b|13b|30b|66b|175b|iml)\b
Gemma3nForConditionalGeneration = gemma-3n
Gemma3ForConditionalGeneration = (med)?gemma-3-(4|12|27)b
Gemma3ForCausalLM = gemma-3-(270m|1b)
Gemma4ForConditionalGeneration = gemma-4(-\d+b-a\d+b)?
Gemma2ForCausalLM = gemma-2-\d+b
GemmaForCausalLM = (code)?gemma-(1\.1-)?[27]b
Qwen2VLForConditionalGeneration = qwen2-vl-
Qwen2_5_VLForConditionalGeneration = qwen2\.5-vl-
Qwen3VLMoeForConditionalGeneration = qwen3-vl-\d+b-a\d+b
Qwen3VLForConditionalGeneration = qwen3-vl-\d+b
Qwen2_5OmniForConditionalGeneration = qwen2\.5-omni
Qwen3OmniMoeForConditionalGeneration = qwen3-omni(-\d+b-a\d+b)?
Qwen2AudioForConditionalGeneration = qwen2-audio
Llama4ForConditionalGeneration = (meta-)?llama-(guard-)?4-
Phi3VForCausalLM = phi-3(\.5)?-vision
Phi4MMForCausalLM = phi-4-multimodal
Mistral3ForConditionalGeneration = mistral-small-3\.[12]|ministral-3-|magistral-small-25(07|09)
PixtralForConditionalGeneration = pixtral-12b
LlavaForConditionalGeneration = llava-1\.5-.*-hf
? = .*(vision|llava|omni|audio|video|speech|embed|rerank|[-_.](vl|vlm|asr|tts)([-_.\d]|$)).*
? = .*(llama-?3[._]\d-nemotron|llama-nemotron)
Qwen2MoeForCausalLM = qwen1\.5-moe-a2\.7b|qwen2-57b-a14b
Qwen3MoeForCausalLM = qwen3-(coder-)?\d+b-a\d+b
Qwen3NextForCausalLM = qwen3-(coder-)?next(-\d+b-a\d+b)?
Qwen3_5MoeForConditionalGeneration = qwen3\.[56]-\d+b-a\d+b
Qwen3_5ForConditionalGeneration = qwen3\.[56]-
Qwen3ForCausalLM = qwen3-(0\.6|1\.7|4|8|14|32)b|deepseek-r1-0528-qwen3
Qwen2ForCausalLM = qwen(1\.5|2|2\.5)-((coder|math)-)?[\d.]+b|qwq-32b|deepseek-r1-distill-qwen
LlamaForCausalLM = (meta-)?(code)?llama-?([123]([-._]|$)|\d+b)|tinyllama|yi-(1\.5-)?(6|9|34)b
LlamaForCausalLM = smollm2?-[\d.]+[mb]|vicuna-(\d+b|v1)|solar-10\.7b
LlamaForCausalLM = deepseek-(llm-|coder-[\d.]+b|r1-distill-llama)|open_llama|hermes-3-llama
MixtralForCausalLM = mixtral-\d+x\d+b
MistralForCausalLM = mistral-(7b|v0\.\d|nemo|small-(24b|instruct-24\d\d)|large-(instruct-)?24\d\d)
MistralForCausalLM = mathstral-7b|ministral-\d+b-(instruct-)?24\d\d|codestral-22b|zephyr-7b-(alpha|beta|sft)
SmolLM3ForCausalLM = smollm3
PhiMoEForCausalLM = phi-3\.5-moe
Phi3SmallForCausalLM = phi-3-small
Phi3ForCausalLM = phi-(3(\.5)?|4)
PhiForCausalLM = phi-(1_5|1|2)$
Olmo2ForCausalLM = olmo-2-
Olmo3ForCausalLM = olmo-3-
OlmoForCausalLM = olmo-[\d.]+b-
GraniteMoeForCausalLM = granite-3\.\d-\d+b-a\d+[mb]
GraniteForCausalLM = granite-3\.\d-\d+b
Cohere2ForCausalLM = c4ai-command-r7b
CohereForCausalLM = c4ai-command-r-
DeepseekV2ForCausalLM = deepseek-(coder-)?v2(\.5)?
DeepseekV3ForCausalLM = deepseek-v3(\.1)?$|deepseek-r1$
ExaoneForCausalLM = exaone-3\.[05]-
Exaone4ForCausalLM = exaone-4\.0
Glm4MoeForCausalLM = glm-4\.[567](?!v)
Glm4ForCausalLM = glm-(4|z1)-.*0414
GlmForCausalLM = glm-4-9b-.*hf
ChatGLMModel = glm-4-9b|chatglm[23]-6b
GptOssForCausalLM = gpt-oss-(safeguard-)?(20|120)b
InternLM2ForCausalLM = internlm2(_5)?-
InternLM3ForCausalLM = internlm3-
JambaForCausalLM = (ai21-)?jamba
Lfm2ForCausalLM = lfm2-[\d.]+[mb]
MiniCPM3ForCausalLM = minicpm3-
MiniCPMForCausalLM = minicpm-\db
Starcoder2ForCausalLM = starcoder2-
GPTBigCodeForCausalLM = starcoder(base|plus)?(-|$)|santacoder
SeedOssForCausalLM = seed-oss
"""  # a class, and how the names of its models begin; the first row counts
WHOLE = r"(?:(?<![^\W_])|(?!\d))(?:(?<!\d)|(?!\.\d))"  # no number goes on: gpt2 is not gpt20, nor v4 v4.1
OTHER = re.compile(  # behind such a name: what is made otherwise than the models of this name
    r"moe|mamba|hybrid|flash(?!attn)|like|\d+x[\d.]+b|[-_]a[\d.]+[mb]([-_]|$)", re.IGNORECASE
)
MODULES = r"""
GPT2LMHeadModel GPTBigCodeForCausalLM = (transformer\.)?h\.\d+\.(attn\.c_|mlp\.c_)
GPTJForCausalLM = transformer\.h\.\d+\.attn\.[qkv]_proj
MPTForCausalLM = transformer\.blocks\.\d+\.(attn\.Wqkv|ffn\.)
BloomForCausalLM FalconForCausalLM RWForCausalLM = transformer\.h\.\d+\.self_attention\.query_key_value
GPTNeoXForCausalLM = gpt_neox\.layers\.
ChatGLMModel = transformer\.encoder\.layers\.\d+\.self_attention\.query_key_value
InternLM2ForCausalLM = model\.layers\.\d+\.(attention\.wqkv|feed_forward\.w[123])
"""  # classes, and how paths begin that only they have

# What transformers 5 has renamed in these models, and not in others that have the same names.
OLD_VISION = re.compile(
    r"(?P<model>\w+\.)?encoder\.layer\.\d+\.(attention\.attention\.(query|key|value)|attention\.output\.dense"
    r"|intermediate\.dense)"
)
RENAMED = re.compile(
    r"(google/)?(vit|deit|beit|ast|vivit|dinov2|audio_spectrogram)(?=[-_.A-Z]|$)", re.IGNORECASE
)
KEPT = re.compile(r"dpt|data2vec|videomae|yolos", re.IGNORECASE)


def _rows(text: str) -> list[tuple[tuple[str, ...], str]]:
    """(classes, pattern) of a table."""
    cut = [line.partition(" = ") for line in text.strip().splitlines()]
    return [(tuple(classes.split()), pattern) for classes, _, pattern in cut]


def candidates(
    config: Mapping[str, Any], architectures: Iterable[str], paths: Iterable[str]
) -> tuple[str, ...]:
    """The classes that the model can be of; none if nothing tells it.

    >>> candidates({"base_model_name_or_path": "openai-community/gpt2-medium"}, [], [])
    ('GPT2LMHeadModel',)
    >>> candidates({}, [], ["model.layers.0.self_attn.q_proj"])
    ()
    """
    if said := classes(config, architectures):
        return (said[0],)
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and (named := by_name(base)):
        return () if named == UNTOLD else (named,)
    listed = list(paths)
    rows = [row for row, pattern in _rows(MODULES) if any(re.match(pattern, path) for path in listed)]
    return rows[0] if len(rows) == 1 else ()


def by_name(base: str) -> str:
    """The class that the name of a base tells; "" if it tells none."""
    path = base.replace("\\", "/").rstrip("/")
    cached = CACHED.search(path)
    last = cached["name"] if cached else path.rpartition("/")[2]
    for (name, *_), pattern in _rows(NAMES):
        if found := re.match(f"(?:{pattern}){WHOLE}", last, re.IGNORECASE):
            return UNTOLD if OTHER.search(last, found.end()) else name
    return ""


def title(name: str) -> str:
    """A class as its model is called.

    >>> title("Qwen2ForCausalLM"), title("GPT2LMHeadModel")
    ('Qwen2', 'GPT2')
    """
    return re.sub(r"(For[A-Z]\w+|LMHeadModel|Model)$", "", name) or name


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
