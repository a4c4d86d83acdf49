"""From conversations to token ids and labels: templates, tokenizers, supervision."""
