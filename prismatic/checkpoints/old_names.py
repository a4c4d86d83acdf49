"""Names of parameters in files that 0.1.0 wrote, when the LLM was a causal language model inside: `llm.model.norm`.

Today `model.` holds the vision backbone, the projector and the LLM without its head (`model.language_model.norm`), and
`lm_head` is beside it, as in other VLMs of transformers.
"""

import re

KEY_MAPPING = {  # as `from_pretrained` takes it: patterns, in this order
    r"^vision_backbone\.": "model.vision_backbone.",
    r"^projector\.": "model.projector.",
    r"^llm\.(?:lm_head|embed_out|head|output_projection)\.": "lm_head.",
    r"^llm\.\w+\.": "model.language_model.",
}
PEFT = "base_model.model."


def current_name(name: str) -> str:
    """Today's name of a parameter of the VLM, or of adapters on it, by its name in a file of any version."""
    prefix = PEFT if name.startswith(PEFT) else ""
    own = name.removeprefix(prefix)
    for pattern, place in KEY_MAPPING.items():
        own, found = re.subn(pattern, place, own)
        if found:
            break
    return prefix + own
