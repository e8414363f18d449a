"""Which classes of models each server has a place for: read from the code of one version of it.

vLLM: the classes of its registry, by whether they are `SupportsLoRA`. llama.cpp: its converter was run on all
linear layers of a class, and gave what it gives of the dense update. SGLang: the classes whose layers have
the names and sizes that its memory pool knows. Tests marked conformance hold vLLM's table against that code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loramerge.errors import printable

HEAD = re.compile(r"(?:For(?:Sequence|Token)Classification|ForQuestionAnswering|(?<!LMHead)Model)$")


def _listed(text: str) -> frozenset[str]:
    """The classes of a table: a line is a suffix, and the classes that have it; `-` is no suffix.

    >>> sorted(_listed("ForCausalLM: Llama Qwen2\\n-: Ovis"))
    ['LlamaForCausalLM', 'Ovis', 'Qwen2ForCausalLM']
    """
    cut = [line.partition(": ") for line in text.strip().splitlines()]
    return frozenset(name + suffix.strip("-") for suffix, _, names in cut for name in names.split())


@dataclass(frozen=True, slots=True)
class Support:
    """What is known of one server.

    Args:
        loads: classes that it has a place for.   lacks: those that it has none for.
        lately: those that it has a place for in the version that was read, and had none for not long before.
    """

    loads: frozenset[str]
    lacks: frozenset[str]
    lately: frozenset[str] = frozenset()

    def knows(self, name: str) -> bool:
        return any(name in each for each in (self.loads, self.lacks, self.lately))

    def named(self, name: str) -> str:
        """The class of its tables that is meant: another head, or none, makes no other model."""
        ends = ("ForCausalLM", "LMHeadModel") if HEAD.search(name) else ()
        alike = (HEAD.sub(end, name) for end in ends)
        return next(filter(self.knows, (name, *alike)), name)

    def verdict(self, name: str) -> bool | None:
        """Whether it has a place for a class; None if that cannot be told."""
        known = self.named(name)
        return True if known in self.loads else False if known in self.lacks else None

    def untold(self, names: Sequence[str], program: str) -> str:
        """Why it cannot be told whether a program has a place for a model of these classes."""
        if not names:
            return "it is for a model that is not known here, and not every model has a place for adapters"
        some = printable(" or ".join(names), 80)
        if any(self.named(name) in self.lately for name in names):
            return f"it is for {some}: {program} has a place for its adapters, and earlier versions have none"
        return f"it is for {some}, and it is not known whether {program} has a place for its adapters"


VLLM = Support(
    _listed("""
ForCausalLM: AXK1 Afmoe AliceAI Apertus Arcee BailingMoe BailingMoeV2 Cohere2 Cohere Cwm DeciLM Deepseek
ForCausalLM: DeepseekOCR2 DeepseekOCR DeepseekV2 DeepseekV32 DeepseekV3 DotsOCR Ernie4_5 Ernie4_5_Moe
ForCausalLM: Exaone4 Exaone FalconH1 GLM4V GPTBigCode Gemma2 Gemma3 Gemma4 Gemma Glm4 Glm4Moe Glm4MoeLite
ForCausalLM: Glm GlmMoeDsa GptOss Granite GraniteMoe GraniteMoeHybrid GraniteMoeSWA GraniteMoeShared
ForCausalLM: GraniteSWA HYV3 HYV4 HunYuanDenseV1 HunYuanMoEV1 HyperCLOVAX IQuestCoder Inkling InternLM2
ForCausalLM: InternLM3 Jamba K2Horizon Kolibri1 LLaMA Laguna Lfm2 Lfm2Moe Llama4 Llama LongcatFlash
ForCausalLM: LongcatFlashNgram Mellum MiMo MiniCPM3 MiniCPM MiniMaxM2 Ministral3 Mistral MistralLarge3
ForCausalLM: Mixtral Molmo MuseGlimmer Nanbeige Nemotron NemotronH NemotronHPuzzle OPT Olmo2 Olmo3 Olmo
ForCausalLM: OlmoHybrid PanguEmbedded PanguProMoEV2 PanguUltraMoE Param2MoE Phi3 Phi4MM Phi PhiMoE Plamo3
ForCausalLM: Qwen2 Qwen2Moe Qwen3 Qwen3Moe Qwen3Next Qwen3_5 Qwen3_5Moe Qwen4Exp Rnj1 SarvamMLA SarvamMoE
ForCausalLM: SeedOss SmolLM3 Solar Starcoder2 Step5 TeleChat2 TeleChat3 TeleFLM UnlimitedOCR VaultGemma
ForConditionalGeneration: AudioFlamingo3 Bagel Blip2 ChatGLM CohereCompass Cosmos3 Eagle2_5_VL Emu3
ForConditionalGeneration: Ernie4_5_VLMoe Exaone4_5_ Gemma3 Gemma4 Gemma4Unified Glm4v Glm4vMoe Glm5Next
ForConditionalGeneration: GlmAsr GlmOcr Granite4Vision GraniteSpeech GraniteSpeechPlus HunYuanVL Idefics3
ForConditionalGeneration: Inkling InternS1 InternS1Pro InternS2Mobius InternS2Preview InternVL Isaac Keye
ForConditionalGeneration: KeyeVL1_5 Lfm2Vl LightOnOCR Llama4 Llava LlavaNext LlavaNextVideo MiniCPMOcr
ForConditionalGeneration: MiniCPMV4_6 MiniCPMV4_7 Mistral3 Molmo2 MuseGlimmer MuseSpark OpenCUA
ForConditionalGeneration: OpenPanguVL PaliGemma Pixtral QianfanOCR Qwen2VL Qwen2_5Omni Qwen2_5_VL Qwen3ASR
ForConditionalGeneration: Qwen3OmniMoe Qwen3VL Qwen3VLMoe Qwen3_5 Qwen3_5Moe Qwen4Exp SmolVLM Step5
ForConditionalGeneration: VibeVoiceAsr Voxtral Whisper
Model: Bert BertSpladeSparseEmbedding BgeM3Embedding ChatGLM DeepseekV3Bidirectional Gemma2 H2OVLChat
Model: InternLM2ForReward InternVLChat JinaEmbeddingsV5 Llama LlamaNemotronVL Mistral ModernBert MossAudio
Model: OpsColQwen3 Qwen2ForProcessReward Qwen2ForReward Qwen2 Qwen2_5Omni Qwen3VLNemotronEmbed Roberta
Model: Ultravox VoyageQwen3BidirectionalEmbed XLMRoberta
-: BertForSequenceClassification BertForTokenClassification ColPaliForRetrieval ColQwen3 ColQwen3_5
-: HF_ColBERT JambaForSequenceClassification JinaVLForRanking LlamaNemotronVLForSequenceClassification
-: MiniCPMO MiniCPMV Llama_Nemotron_Nano_VL NVLM_D NemotronH_Nano_VL_V2 RobertaForMaskedLM
-: RobertaForSequenceClassification XLMRobertaForSequenceClassification
"""),
    _listed("""
ForCausalLM: Arctic BailingMoeV2_5 BailingMoeV3 Beam Bloom Dbrx DeepseekV41 DeepseekVLV2 DomynEdge Dory
ForCausalLM: Dots3Note Falcon FalconMamba Flint GPTJ Gemma3n Glm5Next HCXVisionV2 HrmText IQuestLoopCoder
ForCausalLM: KimiLinear MPT Mamba2 Mamba MiMoV2Flash MiMoV2 MiMoV2Omni MiniMaxM3Sparse Moondream3
ForCausalLM: MoonshotKimia Mpt Orion Ovis2_6 Ovis2_6_Moe Phi3V RW RadioMBartPrefix StableLMEpoch StableLm
ForCausalLM: Step1 Step3Text Step3p5 Zamba2
ForConditionalGeneration: Aria BailingMoeV3VL Bee Cohere2Vision CohereAsr Cosmos3Edge FireRedASR2 FunASR
ForConditionalGeneration: FunAudioChat Gemma3n KananaV KimiK25 KimiK3 KimiVL LlavaOnevision2
ForConditionalGeneration: LlavaOnevision MiniMaxM3Sparse MossTranscribeDiarize NemotronParse PaddleOCRVL
ForConditionalGeneration: Qwen2Audio R Step3VL Step3p7 StepVL
Model: CLIP ColBERTJinaRoberta ColBERTLfm2 ColBERTModernBert EmbeddingGemma2 Gemma3Text Gte GteNew
Model: Lfm2Bidirectional LlamaBidirectional MiDashengLM ModernVBert NomicBert Siglip SkyworkR1VChat
-: GPT2LMHeadModel GPT2ForSequenceClassification BertForMaskedLM ColModernVBertForRetrieval HfMoondream
-: ColUltraVBertForRetrieval D3ForSequenceClassification DiffusionGemmaForBlockDiffusion JinaForRanking
-: GteNewForSequenceClassification LlamaBidirectionalForSequenceClassification OpenVLAForActionPrediction
-: Ovis ModernBertForSequenceClassification ModernBertForTokenClassification
-: OpenAIPrivacyFilterForTokenClassification Ovis2_5 Phi4ForCausalLMV RobertaForTokenClassification
-: Terratorch XLMRobertaForTokenClassification
"""),
    _listed("""
ForCausalLM: Olmoe FlexOlmo GPTNeoX Jais2 ExaoneMoe ExaoneMoE DeepseekV4
ForConditionalGeneration: DeepseekV4
"""),
)
VLLM_TOKENS = _listed("""
ForCausalLM: Apertus DeciLM Ernie4_5 Exaone4 ExaoneMoE ExaoneMoe FalconH1 Granite GraniteMoe
ForCausalLM: GraniteMoeHybrid GraniteMoeSWA GraniteMoeShared GraniteSWA HyperCLOVAX IQuestCoder InternLM3
ForCausalLM: Jamba K2Horizon LLaMA Lfm2 Lfm2Moe Llama4 Llama MiniCPM3 MiniCPM Mixtral Nemotron NemotronH
ForCausalLM: NemotronHPuzzle Param2MoE Phi3 PhiMoE Qwen3 Qwen3Moe Qwen3_5 Qwen3_5Moe Solar TeleChat2
ForCausalLM: TeleChat3 TeleFLM
-: JambaForSequenceClassification JinaEmbeddingsV5Model LlamaModel MistralModel MossAudioModel
-: MuseSparkForConditionalGeneration
""")  # classes whose embed_tokens and lm_head take adapters
VLLM_INPUTS = _listed("""
ForCausalLM: Arcee Cohere2 Cohere Cwm FlexOlmo GPTBigCode GPTNeoX Glm HunYuanDenseV1 HunYuanMoEV1 Jais2
ForCausalLM: Kolibri1 Mellum Nanbeige Olmo2 Olmo3 Olmo Phi SeedOss SmolLM3 Starcoder2 VaultGemma
ForConditionalGeneration: Emu3 HunYuanVL VibeVoiceAsr
""")  # classes whose embed_tokens does, and not lm_head
LLAMA_CPP = Support(
    _listed("""
ForCausalLM: Afmoe Apertus Arcee Bloom Cohere2 Cohere2Moe Cohere Ernie4_5 Ernie4_5_Moe Exaone4 ExaoneMoe
ForCausalLM: GPTBigCode GPTNeoX Gemma2 Gemma3 Gemma Glm4 Glm4Moe Glm GptOss Granite GraniteMoe
ForCausalLM: GraniteMoeHybrid GraniteMoeSWA GraniteMoeShared GraniteSWA HYV3 HrmText Jais2 Laguna Lfm2
ForCausalLM: Llama4 Llama Mellum MiMoV2Flash MiniCPM3 MiniMaxM2 Ministral3 Mistral Mixtral NemotronH Olmo2
ForCausalLM: Olmo3 Olmo Olmoe Phi3 Phi Qwen2 Qwen2Moe Qwen3 Qwen3Moe Qwen4Exp SeedOss SmolLM3 SolarOpen
ForCausalLM: StableLm Starcoder2
-: GPT2LMHeadModel
"""),
    _listed("""
ForCausalLM: AXK1 AriaText Beam BigBird BioGpt Blenderbot CodeGen Cwm DiffLlama Doge Emu3 FlexOlmo Fuyu
ForCausalLM: GPTJ GPTNeo GPTNeoXJapanese Helium HyperCLOVAX JetMoe LongcatFlash MiniMax Mllama NanoChat
ForCausalLM: OPT OlmoHybrid Persimmon RecurrentGemma VaultGemma XGLM Zamba Zamba2 xLSTM
-: OpenAIGPTLMHeadModel CTRLLMHeadModel XLNetLMHeadModel
"""),
)
SGLANG = Support(
    _listed("""
ForCausalLM: Llama Mistral Ministral3 Mixtral Qwen2 Qwen3 Qwen3Moe Gemma Gemma2 Gemma3 Phi3 Granite Olmo
ForCausalLM: Olmo2 StableLm Orion InternLM3 Cohere Cohere2 Exaone4 Glm4 MiniCPM Solar Xverse
"""),
    frozenset(),
)
