"""MaskEmbed, the post-training that teaches a ViT's patch embeddings local meaning (the locality alignment paper)."""
