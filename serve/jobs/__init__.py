"""Offline scoring: files in, the same records with rewards out."""
