"""What the verbs did to the data, as tables and pictures."""
