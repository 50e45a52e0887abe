"""Precisions of exported graphs: float16, and integers."""
