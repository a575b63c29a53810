"""Tessera and other CPU engines, measured side by side: `python -m benchmarks.cpu`."""
