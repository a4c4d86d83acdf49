"""Language models of many families, tiny and with random weights."""

import torch
from small_tokenizers import byte_level
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
WIDE = {"head_dim": 8}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
WORK = {  # what packs and shares
    "llama": {}, "qwen2": {}, "qwen3": WIDE, "qwen3_moe": WIDE | {"num_experts": 4, "moe_intermediate_size": 16,
                                                               "num_experts_per_tok": 2},
    "mistral": {"sliding_window": 16}, "gemma": WIDE, "gemma2": WIDE | {"sliding_window": 16},
    "gemma3_text": WIDE | BOTH,
    "phi": {}, "phi3": {"pad_token_id": 0}, "olmo2": {}, "olmo3": BOTH, "smollm3": {"no_rope_layers": [1, 0]},
    "gpt_oss": WIDE | {"num_local_experts": 4, "sliding_window": 16}, "granite": {}, "gpt_neox": {}, "gpt2": GPT,
    "starcoder2": {"sliding_window": 16}, "cohere2": WIDE | BOTH, "glm4": WIDE, "exaone4": BOTH,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}  # fmt: skip
ELSE = {  # what is refused and goes through generate
    "stablelm": {}, "nemotron": {}, "lfm2": {"layer_types": ["conv", "full_attention"]}, "mamba": {"state_size": 8},
    "bloom": {"n_layer": 2, "n_head": 4}, "falcon": {}, "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "llama4_text": WIDE | {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "qwen3_5_text": WIDE | {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}  # fmt: skip
PACK = {  # what packs, but has a cache of its own kind
    "deepseek_v3": {"first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
                    "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
                    "v_head_dim": 8, "moe_intermediate_size": 16, "num_key_value_heads": 4},
}  # fmt: skip
ALONE = {"rwkv": {"attention_hidden_size": 32}}  # what does not even stand padding on the left


def write_llm(folder, family, tokenizer=None, **settings):
    """A folder with random weights, as `save_pretrained` leaves it."""
    tokenizer = tokenizer or byte_level("<s>", "</s>")
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(family, **(SIZES | {"vocab_size": len(tokenizer)} | ids | settings))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
