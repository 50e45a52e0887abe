"""Graphs for TensorRT: whether it reads them, and the script that builds them with its own tool."""

from .lint import Finding, lint_for_tensorrt
from .script import SCRIPT_NAME, write_script
from .target import TensorRTTarget

__all__ = ["SCRIPT_NAME", "Finding", "TensorRTTarget", "lint_for_tensorrt", "write_script"]
