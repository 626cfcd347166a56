"""From files to training batches: tokenizer, fill-in-the-middle, mixture of languages, packed sequences."""
