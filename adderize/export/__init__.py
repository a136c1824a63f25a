"""Adder networks in other forms than PyTorch's."""
