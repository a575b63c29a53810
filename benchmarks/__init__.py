"""Measurements against other engines. See README.md."""
