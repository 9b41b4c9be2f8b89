"""The whole training step of a one-layer rate classifier in fused kernels: Poisson spikes, linear layer, neurons, loss,
gradients and optimizer. ``numba`` runs it on the CPU, ``triton`` on a GPU; the trainer's fused step is its only user.
"""
