"""What a model is worth on files it has not seen, short of running what it writes; needs the extra `evaluate`."""
