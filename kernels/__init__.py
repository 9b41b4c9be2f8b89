"""The numerical core: each operator's equations, its Triton kernel and its Numba twin, under one stem.

Imported as ``fastsnn.kernels``; it imports torch, triton and numba, never the rest of fastsnn. It works without triton.

Names in kernels: ``T`` time steps, ``B`` samples, ``K`` inputs, ``N`` neurons; ``x_ptr`` a pointer, ``stride_xt`` the
stride of x along t, ``offs_n`` a block's indices along n, ``mask_n`` which of them exist, ``BLOCK_N`` the block's size.
Capitals are compile-time constants.
"""

if __name__ == "kernels":
    raise ImportError(
        "this folder is the package fastsnn.kernels; write `import fastsnn.kernels` (not `import kernels`) "
        "after `pip install -e .` in the repository root"
    )
