"""Runs a bundle on a device: Python 3.10 or later, NumPy and ONNX Runtime, nothing else.

This folder is copied into every bundle: ``python3 -m runtime verify .`` inside the bundle needs no
installation.
"""
