"""The compiled kernels, executed on a CPU: an emulator of the PTX instructions that Triton makes of them."""
