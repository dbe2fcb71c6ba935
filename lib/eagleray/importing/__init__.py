"""Imports networks of other programs from ONNX files, behind the interface of every model."""
