"""All verbs in their order: from one TOML file, for a corpus of public packages, on a cluster."""
