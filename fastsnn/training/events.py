"""TensorBoard's file of events, written without torch's SummaryWriter.

That one starts a thread, and takes every path for UTF-8: in a folder of another encoding, as on a Chinese system with
GBK, it fails.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path


class EventFile:
    """A new file of events in a run folder; what an earlier one holds from ``first_step`` on counts no more."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # Importing TensorBoard takes a second: not before something is written to it.
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._records = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers of a step, by the names under which TensorBoard shows them."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=Summary(value=shown))
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _add(self, **fields: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
