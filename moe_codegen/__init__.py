"""Turn dense code language models into sparse mixtures of experts, and run them fast."""
