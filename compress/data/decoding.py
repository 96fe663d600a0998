"""Decodes image files in processes that live as long as their data set: a pass over it starts none."""

import atexit
import os
import signal
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from compress.utils.errors import UserError
from compress.utils.images import Square, opened, read


class Stored(Protocol):
    """An image inside a larger file."""

    def open(self) -> BinaryIO:
        """Returns the bytes of the image. Raises OSError where they are not there any more."""
        ...


Source = str | Path | Stored


class DecodingPool:
    """`workers` processes that decode image files, started when they are first needed; 0: this process decodes."""

    def __init__(self, square: Square, channels: int, workers: int):
        self._decoder = _Decoder(square, channels)
        self._workers = workers
        self._batches: list[list[Source]] = []  # of the pass under way; the loader reads it at the start of each
        self._loader: DataLoader | None = None
        self._in_use = False

    def decode(self, batches: Sequence[list[Source]]) -> Iterator[torch.Tensor]:
        """Yields the images (N, C, S, S) of each batch of paths. Raises UserError for a file that cannot be decoded.

        Pixels are uint8; float32 from 0 to 255 in a batch with images of more bits. A pass that begins before another
        one has ended has processes of its own.
        """
        if self._in_use:
            yield from _decoded(self._new_loader(list(batches), kept=False))
            return
        if self._loader is None:
            self._loader = self._new_loader(self._batches, kept=self._workers > 0)
            self._end = weakref.finalize(self, _end_workers, self._loader, os.getpid())
            atexit.register(self._end)  # before multiprocessing ends, which waits for workers that ignore its signal
        self._batches[:] = batches
        self._in_use = True
        try:
            yield from _decoded(self._loader)
        finally:
            self._in_use = False

    def close(self) -> None:
        """Ends the processes; the next pass would start new ones."""
        if self._loader is not None:
            self._end()
            self._loader = None

    def _new_loader(self, batches: list[list[Source]], kept: bool) -> DataLoader:
        return DataLoader(
            self._decoder,
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(0),  # by default a pass draws from the stage's random numbers
            worker_init_fn=_leave_signals_to_parent,
            persistent_workers=kept,
        )


def _end_workers(loader: DataLoader, owner: int) -> None:
    """Ends the workers of a loader, also where a pass is still under way; a fork of process `owner` keeps them."""
    if os.getpid() == owner and loader._iterator is not None:
        loader._iterator._shutdown_workers()  # torch has no public name for this


def _decoded(loader: DataLoader) -> Iterator[torch.Tensor]:
    for images in loader:
        if isinstance(images, UserError):
            raise UserError(images.received, images.expected, images.mend)
        yield images.permute(0, 3, 1, 2)


class _Decoder(Dataset):
    """What a loader calls an index is the path of a file here."""

    def __init__(self, square: Square, channels: int):
        self.square, self.channels = square, channels

    def __getitem__(self, path: Source) -> torch.Tensor | UserError:
        """Returns the image (S, S, C), or its error: one that a worker raises would arrive as another exception."""
        try:
            file = path if isinstance(path, (str, Path)) else path.open()
            with opened(file, str(path)) as image:
                return torch.from_numpy(np.array(read(image, self.channels, self.square, str(path))))
        except UserError as error:
            return error
        except OSError as error:
            return UserError(str(error), "the file as it was at the start", "start the run again")


def _leave_signals_to_parent(worker: int) -> None:
    """Ignores SIGTERM and SIGINT, which reach all processes of a run: the training still finishes its step.

    A worker ends with its loader or its parent.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _collate(items: list[torch.Tensor | UserError]) -> torch.Tensor | UserError:
    """Returns the images (N, S, S, C) of a batch, in memory that processes share."""
    mistake = next((item for item in items if isinstance(item, UserError)), None)
    if mistake is not None:
        return mistake
    images = [item for item in items if not isinstance(item, UserError)]
    deep = any(image.is_floating_point() for image in images)
    return default_collate([image.float() for image in images] if deep else images)
