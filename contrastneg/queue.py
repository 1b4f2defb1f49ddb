"""The queue of past keys."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """A ring of the last ``size`` keys and the image each came from (MoCo, arXiv:1911.05722).

    Key number n of the stream is written to slot ``n mod size``, whatever the batch sizes; of a batch larger than the
    queue the last ``size`` rows stay. Slots that were never written have ``image_id`` -1 and are not candidates. All
    state is in buffers, so it is in the checkpoint once and the same on every rank if every rank pushes the same
    (gathered) keys. Data-parallel wrappers need not broadcast it.

    Buffers:
        keys: (K, D) key embeddings.
        image_id: (K,) image index of each key, -1 in an unfilled slot.
        pointer: Slot that the next key will be written to.
        filled: Number of slots written so far, at most K.
    """

    keys: Tensor
    image_id: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        """Make an empty queue.

        Args:
            size: Keys held, K >= 1.
            dim: Width of an embedding, D >= 1.
            dtype: Type the keys are kept in; bfloat16 halves the memory.

        Raises:
            ValueError: A size is below 1.
        """
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue of {size} keys of width {dim} was asked for: both must be at least 1")
        self.register_buffer("keys", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("image_id", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        # The same two numbers for the host: reading a buffer would wait for the device at every step.
        self._pointer = 0
        self._filled = 0

    def __len__(self) -> int:
        """Keys held now; ``len(queue.keys)`` is the capacity."""
        return self._filled

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "B D"], image_id: Int64[Tensor, " B"]) -> None:
        """Write a batch of keys over the oldest ones, in place.

        Call it after scoring, or a query meets its own key. Under data parallelism push the gathered keys, in the same
        order on every rank (:func:`contrastneg.distributed.all_gather`).

        Args:
            keys: Unit-norm key embeddings; any number of rows.
            image_id: Image index of each key.

        Raises:
            ValueError: The keys have another width than the queue, or not one image each.
        """
        size, dim = self.keys.shape
        if keys.shape[1] != dim:
            raise ValueError(f"the queue holds keys of width {dim} but was given width {keys.shape[1]}: use one head")
        if len(keys) != len(image_id):
            raise ValueError(f"{len(keys)} keys were pushed with {len(image_id)} image ids: give one for each key")
        pushed = len(keys)
        start = (self._pointer + max(pushed - size, 0)) % size  # slot of the first row that stays
        keys, image_id = keys[-size:], image_id[-size:]
        before_wrap = min(len(keys), size - start)
        for buffer, rows in ((self.keys, keys), (self.image_id, image_id)):
            buffer[start : start + before_wrap] = rows[:before_wrap]
            buffer[: len(rows) - before_wrap] = rows[before_wrap:]
        self._pointer = (self._pointer + pushed) % size
        self._filled = min(self._filled + pushed, size)
        self.pointer.fill_(self._pointer)
        self.filled.fill_(self._filled)

    def filled_keys(self) -> tuple[Float[Tensor, "F D"], Int64[Tensor, " F"]]:
        """The keys written so far and their image ids, as views that the next push changes.

        For :func:`contrastneg.logsumexp.one_pass_logsumexp`, which keeps nothing of them for its backward pass.
        """
        return self.keys[: self._filled], self.image_id[: self._filled]

    def candidates(self, *, copy: bool = True) -> tuple[Float[Tensor, "F D"], Int64[Tensor, " F"]]:
        """The keys written so far and their image ids, safe from later pushes.

        The table of similarities needs the keys again in its backward pass, and autograd refuses to run it if a push
        came in between.

        Args:
            copy: False gives :meth:`filled_keys`, for a caller that pushes after the backward pass.
        """
        keys, image_id = self.filled_keys()
        return (keys.clone(), image_id.clone()) if copy else (keys, image_id)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        saved = state_dict.get(prefix + "keys")
        if saved is not None and saved.shape != self.keys.shape:
            (size, dim), (held, width) = self.keys.shape, saved.shape
            raise ValueError(
                f"the queue is {size} keys of width {dim} but the checkpoint holds {held} of width {width}: "
                f"set method.queue_size to {held} and method.projector.out to {width}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._pointer, self._filled = int(self.pointer), int(self.filled)
