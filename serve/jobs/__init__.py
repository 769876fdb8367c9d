"""Offline scoring: read files of records and write the same records with rewards."""
