"""What fastsnn raises besides ValueError and TypeError; each message says what happened and what to do next."""


class FastSNNError(RuntimeError):
    """Base of fastsnn's own errors."""


class BackendUnavailable(FastSNNError):  # noqa: N818 - it is a state of the machine, reported as an error
    """The backend that was asked for can't run on this machine."""


class DeviceUnavailable(FastSNNError):  # noqa: N818
    """The device that was asked for is not in this machine, or torch can't use it."""


class DataUnavailable(FastSNNError):  # noqa: N818
    """A data set is missing, damaged or can't be downloaded."""


class RunFolderError(FastSNNError):
    """A run folder or one of its files is missing, in use, damaged or made by something else."""


class TrainingDiverged(FastSNNError):  # noqa: N818
    """The loss became NaN or infinite."""


class Interrupted(KeyboardInterrupt):
    """Stopped on request: training after a batch, with everything saved.

    A KeyboardInterrupt, so that no ``except Exception`` takes the signal that it may stand for as a failure of its own.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
