"""Sound from a microphone, through sounddevice (PortAudio): blocks with their time of arrival, losses counted."""

import queue
import time
from collections.abc import Iterator
from typing import Any

from gafx.errors import UsageError, first_line, require

# Length of a block: the time of arrival of a sample is known to within one.
_BLOCK_SECONDS = 0.05
# Blocks that wait while windows are computed; further ones are lost.
_ROOM_SECONDS = 30.0
_PATIENCE_SECONDS = 10.0


def sounddevice() -> Any:
    """Import sounddevice.

    Raises:
        UsageError: it or the library PortAudio is not installed.
    """
    try:
        return require("sounddevice", "the microphone")
    except OSError as error:  # the package is there, the library is not
        raise UsageError(
            f"the microphone needs PortAudio ({first_line(error)}): install it, e.g. `apt install libportaudio2`, or "
            "pipe raw PCM to `gafx listen -`"
        ) from error


def devices() -> list[tuple[int, str, int, int, bool]]:
    """Input devices: number, name, channels, sampling rate in Hz, whether it is the default one."""
    module = sounddevice()
    default = module.default.device[0]
    return [
        (number, found["name"], found["max_input_channels"], round(found["default_samplerate"]), number == default)
        for number, found in enumerate(module.query_devices())
        if found["max_input_channels"] > 0
    ]


class Microphone:
    """Context manager that records 16-bit PCM until it is left.

    Args:
        device: number or part of the name of an input device; None for the default one.
        sample_rate: in Hz; None for the device's own.
        channels: to record; at most the device's.

    Attributes:
        name: of the device.
        sample_rate: in Hz.
        channels: that are recorded.
        dropped: blocks that were lost because computing them took too long.
        dropped_seconds: of them.
        overflows: times that the sound system lost an unknown amount before it came here.

    Raises:
        UsageError: sounddevice is not installed; no such device, or one that cannot be opened so.
    """

    def __init__(self, device: str | None = None, sample_rate: int | None = None, channels: int | None = None):
        module = sounddevice()
        which = int(device) if device is not None and device.isdecimal() else device
        self._frames = self.dropped = self.overflows = 0
        self.dropped_seconds = 0.0
        try:
            found = module.query_devices(which, "input")
            self.name = found["name"]
            self.sample_rate = sample_rate or round(found["default_samplerate"])
            self.channels = channels or 1
            self._blocks: queue.Queue[tuple[float, int, int, bytes]] = queue.Queue(
                round(_ROOM_SECONDS / _BLOCK_SECONDS)
            )
            self._stream = module.RawInputStream(
                samplerate=self.sample_rate, blocksize=round(_BLOCK_SECONDS * self.sample_rate), device=which,
                channels=self.channels, dtype="int16", callback=self._record,
            )  # fmt: skip
        except (module.PortAudioError, ValueError) as error:
            raise UsageError(
                f"the microphone cannot be opened ({first_line(error)}): gafx listen --list-devices shows the input "
                "devices, --input-device, --rate and --channels choose"
            ) from error

    def __enter__(self) -> "Microphone":
        self._stream.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.stop()
        self._stream.close()

    def _record(self, content: Any, frames: int, _: object, status: Any) -> None:
        """Called by PortAudio, in a thread of its own, with each block."""
        moment = time.perf_counter()
        if status and status.input_overflow:
            self.overflows += 1
        try:
            self._blocks.put_nowait((moment, self._frames, self.overflows, bytes(content)))
        except queue.Full:
            self.dropped += 1
            self.dropped_seconds += frames / self.sample_rate
        self._frames += frames

    def pieces(self) -> Iterator[tuple[float, Iterator[tuple[float, bytes]]]]:
        """Pieces of the recording without a gap: where each begins, in seconds, and its blocks with their arrival.

        A piece must be read to its end before the next; it ends where blocks were lost.

        Raises:
            UsageError: nothing comes any more.
        """
        waiting: list[tuple[float, int, int, bytes]] = [self._next()]

        def until_gap() -> Iterator[tuple[float, bytes]]:
            while True:
                moment, start, overflows, content = waiting.pop()
                yield moment, content
                waiting.append(self._next())
                _, position, later, _ = waiting[0]
                if position != start + len(content) // (2 * self.channels) or later != overflows:
                    return

        while True:
            yield waiting[0][1] / self.sample_rate, until_gap()

    def _next(self) -> tuple[float, int, int, bytes]:
        try:
            return self._blocks.get(timeout=_PATIENCE_SECONDS)
        except queue.Empty:
            raise UsageError(
                f"{self.name} has given no sound for {_PATIENCE_SECONDS:g} s: check that it is connected and allowed"
            ) from None
