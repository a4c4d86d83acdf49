"""What a finetune needs, before it starts."""
