"""The kernels, in Triton's language: plain functions of pointers and integers, no torch."""
