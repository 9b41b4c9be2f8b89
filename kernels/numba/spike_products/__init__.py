"""The products of a linear layer on spikes, on the CPU."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastsnn.kernels.numba.spike_products import kernels
from fastsnn.kernels.numba.spike_products.layout import shape_of, spikes_for
from fastsnn.kernels.numba.spike_products.packing import pack
from fastsnn.kernels.numba.threads import meeting, spread, workers_for

Way = Literal["tables", "lists", "dense"]
LISTS_BELOW = 0.12

def currents(words, T, weight, bias, out, way=None, workers=None):
    threshold = LISTS_BELOW if way is None else {"tables": -1.0, "lists": 2.0}[way]
    B, K = words.shape[1:]; N = len(weight)
    shape = shape_of(T, B, K, N)
    workers = workers or workers_for(T*B*K*N // 512)
    spikes = spikes_for(shape, True)
    work = kernels.work_for(shape, workers, 1)
    b = np.empty(0, np.float32) if bias is None else bias.numpy()
    arrived = meeting()
    k = kernels.forward_narrow if N <= 16 else kernels.forward
    spread(k, workers, arrived, words.numpy(), weight.numpy(), b, out.reshape(T*B, N).numpy(), shape, threshold, spikes, work, arrived=arrived)

def weight_gradient(words, T, grad, out, way=None, workers=None):
    threshold = LISTS_BELOW if way is None else {"tables": -1.0, "lists": 2.0}[way]
    B, K = words.shape[1:]; N = grad.shape[-1]
    shape = shape_of(T, B, K, N)
    workers = workers or workers_for(T*B*K*N // 512)
    parts = kernels.parts_for(shape)
    spikes = spikes_for(shape, False)
    work = kernels.work_for(shape, workers, parts)
    arrived = meeting()
    k = kernels.gradient_narrow if N <= 16 else kernels.gradient
    spread(k, workers, arrived, words.numpy(), grad.reshape(T*B, N).numpy(), out.numpy(), shape, threshold, parts, spikes, work, arrived=arrived)
