"""The network of ``fastsnn train`` written out: Flatten -> Linear(784, 10) -> LIF, Poisson coding, T = 100.

``python examples/from_scratch.py [mnist|fashion-mnist|digits] [EPOCHS]``
"""

import sys

import torch
from torch.nn.functional import mse_loss, one_hot

import fastsnn
from fastsnn.sources import images as data

T, BATCH = 100, 64


def main(name: str = "mnist", epochs: str = "5") -> float:
    torch.manual_seed(0)
    d = data.load(name)  # images uint8 [D, 784], labels int64 [D]
    net = fastsnn.LinearLIF(d.train_images.shape[1], 10, bias=False, neuron=fastsnn.LIFParameters(tau=2.0))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for epoch in range(int(epochs)):
        for ids in torch.randperm(len(d.train_images)).split(BATCH):
            spikes = fastsnn.poisson_encode(d.train_images[ids], T, epoch=epoch, sample_ids=ids)  # [T, B, 784]
            rate = net(spikes).mean(0)  # [B, 10]
            loss = mse_loss(rate, one_hot(d.train_labels[ids], 10).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = 0
        for ids in torch.arange(len(d.test_images)).split(256):
            with torch.no_grad():
                rate = net(fastsnn.poisson_encode(d.test_images[ids], T, stream=1, sample_ids=ids)).mean(0)
            right += int((rate.argmax(1) == d.test_labels[ids]).sum())
        print(f"epoch {epoch + 1}: test accuracy {right / len(d.test_images):.2%}")
    return right / len(d.test_images)


if __name__ == "__main__":
    main(*sys.argv[1:])
