"""Hierarchical schedule optimization (arXiv 2511.11688)."""
