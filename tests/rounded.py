"""Weights as they are after a detour through 4 bits."""


def round_to_4_bits(layer, **options):
    """Replaces the weights of a linear layer by what bitsandbytes makes of their NF4 form."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    layer.weight.data = dequantize_4bit(*quantize_4bit(layer.weight.data, quant_type="nf4", **options))
