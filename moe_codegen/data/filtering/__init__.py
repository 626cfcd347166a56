"""Which files are dropped for what they are: by themselves, or for the benchmark that they hold."""
