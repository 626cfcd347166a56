"""A verb's passes over a source: units in worker processes, safe to kill, what each gives, progress."""
