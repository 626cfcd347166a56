"""One file of each content, and one of each cluster of near-duplicates."""
