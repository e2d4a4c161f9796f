"""What compilers and arithmetic say about the GPU kernels where there is no GPU."""
