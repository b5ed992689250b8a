"""Importers: hostile bytes in, contents and a report out. They run in a process of their own (`importing.py`)."""
