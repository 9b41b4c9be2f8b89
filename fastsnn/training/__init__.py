"""Training: :func:`fit` for any network and data, :func:`train` for what the command line names."""

from fastsnn.training.command import evaluate, load, train
from fastsnn.training.loop import History, fit
from fastsnn.training.predictions import Predictions, predict

__all__ = ["History", "Predictions", "evaluate", "fit", "load", "predict", "train"]
