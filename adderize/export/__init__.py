"""Adder networks in other forms than PyTorch's."""

from adderize.export.c.writing import export_c
from adderize.export.hex import export_hex
from adderize.export.onnx import export_onnx, translation_table

__all__ = ["export_c", "export_hex", "export_onnx", "translation_table"]
