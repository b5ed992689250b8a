"""Revisions, oldest first by name; each is applied once, whole or not at all."""
