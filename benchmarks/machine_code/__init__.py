"""The machine code of the Triton kernels, without a GPU. `python -m benchmarks.machine_code`."""
