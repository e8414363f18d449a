"""The modules in one layer of the models that are known: which names can belong to one model.

A line is a list of layers and what is in it, by transformers' names; a model joins by a line. `known` tells
two adapters that adapt different parts of one model from two that call its parts differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loramerge.formats.models.templates import spread

_MLA = "self_attn.{q_a,q_b,q,kv_b,o}_proj self_attn.kv_a_proj_with_mqa"
_GATED = "mlp.{gate,up,down}_proj"
_EXPERTS = "{0}.experts.*.{{gate,up,down,gate_up}}_proj {0}.experts.{{gate_up,down}}_proj"
_QKVO = "self_attn.{q,k,v,o}_proj"

_LINES = {
    "Llama": f"layers.* {_QKVO} {_GATED}",
    "Llama 4": f"layers.* {_QKVO} feed_forward.{{gate,up,down}}_proj feed_forward.router "
    f"feed_forward.shared_expert.{{gate,up,down}}_proj {_EXPERTS.format('feed_forward')}",
    "Qwen's mixture of experts": f"layers.* {_QKVO} {_GATED} mlp.gate mlp.shared_expert_gate "
    f"mlp.shared_expert.{{gate,up,down}}_proj {_EXPERTS.format('mlp')}",
    "gpt-oss": f"layers.* {_QKVO} mlp.router {_EXPERTS.format('mlp')}",
    "DeepSeek's mixture of experts": f"layers.* {_QKVO} {_MLA} {_GATED} mlp.gate "
    f"mlp.shared_experts.{{gate,up,down}}_proj {_EXPERTS.format('mlp')}",
    "Mixtral": f"layers.* {_QKVO} block_sparse_moe.gate block_sparse_moe.experts.*.{{w1,w2,w3}}",
    "Phi-3": "layers.* self_attn.{qkv,o}_proj mlp.{gate_up,down}_proj",
    "GLM": f"layers.* {_QKVO} mlp.{{gate_up,down}}_proj",
    "Qwen3-Next": f"layers.* {_QKVO} {_GATED} mlp.gate mlp.shared_expert_gate {_EXPERTS.format('mlp')} "
    "mlp.shared_expert.{gate,up,down}_proj "
    "linear_attn.in_proj_{qkv,q,k,v,z,a,b,qkvz,ba} linear_attn.out_proj",
    "Phi": "layers.* self_attn.{q_proj,k_proj,v_proj,dense} mlp.{fc1,fc2}",
    "StarCoder2": f"layers.* {_QKVO} mlp.{{c_fc,c_proj}}",
    "OPT": "layers.* self_attn.{q,k,v,out}_proj {fc1,fc2}",
    "BART or Whisper": "layers.* {self_attn,encoder_attn}.{q,k,v,out}_proj {fc1,fc2}",
    "CLIP": "layers.* self_attn.{q,k,v,out}_proj mlp.{fc1,fc2}",
    "GPT-2": "h.* attn.{c_attn,c_proj} mlp.{c_fc,c_proj}",
    "GPT-J": "h.* attn.{q,k,v,out}_proj mlp.{fc_in,fc_out}",
    "GPT-Neo": "h.* attn.attention.{q,k,v,out}_proj mlp.{c_fc,c_proj}",
    "Qwen": "h.* attn.{c_attn,c_proj} mlp.{w1,w2,c_proj}",
    "BLOOM or Falcon": "h.* self_attention.{query_key_value,dense} mlp.{dense_h_to_4h,dense_4h_to_h}",
    "GPT-NeoX": "layers.* attention.{query_key_value,dense} mlp.{dense_h_to_4h,dense_4h_to_h}",
    "ChatGLM": "layers.* self_attention.{query_key_value,dense} mlp.{dense_h_to_4h,dense_4h_to_h}",
    "MPT": "blocks.* attn.{Wqkv,out_proj} ffn.{up_proj,down_proj}",
    "InternLM2": "layers.* attention.{wqkv,wo} feed_forward.{w1,w2,w3}",
    "Baichuan": f"layers.* self_attn.{{W_pack,o_proj}} {_GATED}",
    "Mamba": "layers.* mixer.{in_proj,x_proj,dt_proj,out_proj}",
    "BERT": "layer.* attention.self.{query,key,value} attention.output.dense intermediate.dense output.dense",
    "DistilBERT": "layer.* attention.{q_lin,k_lin,v_lin,out_lin} ffn.{lin1,lin2}",
    "DeBERTa": "layer.* attention.self.{query_proj,key_proj,value_proj,in_proj} attention.output.dense "
    "intermediate.dense output.dense",
    "ModernBERT": "layers.* attn.{Wqkv,Wo} mlp.{Wi,Wo}",
    "T5": "block.* layer.*.{SelfAttention,EncDecAttention}.{q,k,v,o} "
    "layer.*.DenseReluDense.{wi,wi_0,wi_1,wo}",
    "ViT": "layer.* attention.attention.{query,key,value} attention.output.dense intermediate.dense "
    "output.dense mlp.{fc1,fc2}",
    "ViT of transformers 5": "layers.* attention.{q,k,v,o}_proj mlp.{fc1,fc2}",
    "DINOv2": "layer.* attention.{q,k,v,o}_proj "
    "mlp.{fc1,fc2,weights_in,weights_out,gate_proj,up_proj,down_proj}",
    "the vision tower of Qwen": "blocks.* attn.{qkv,proj,q,k,v} mlp.{fc1,fc2,gate_proj,up_proj,down_proj,"
    "linear_fc1,linear_fc2}",
    "timm's ViT": "blocks.* attn.{qkv,proj} mlp.{fc1,fc2}",
    "Stable Diffusion": "transformer_blocks.* {attn1,attn2}.{to_q,to_k,to_v,to_out.*} ff.net.*.proj ff.net.*",
}

ENCODED = {
    "CLIP",
    "BART or Whisper",
    "BERT",
    "DeBERTa",
    "T5",
    "ViT",
    "DINOv2",
}  # whose layers lie in `encoder`


def _modules(line: str) -> frozenset[str]:
    layers, *inside = line.split()
    return frozenset(f"{layers}.{name}" for each in inside for name in spread(each))


KNOWN: Mapping[str, frozenset[str]] = {name: _modules(line) for name, line in _LINES.items()}


def known(rests: Iterable[str]) -> list[str]:
    """The models that have all these modules of their layers; numbers as `*`.

    >>> known(["layers.*.self_attn.qkv_proj"]), known(["layers.*.attn.q"])
    (['Phi-3'], [])
    """
    wanted = set(rests)
    return [name for name, modules in KNOWN.items() if wanted <= modules]
