"""A text that every Python installation carries, as sequences of characters."""

import numpy as np

from bpresearch.data.dataset import Dataset

LENGTH = 64


def text() -> Dataset:
    """Python's own documentation of its language, character by character: each next one is to be predicted.

    The topics of `help()` (`pydoc_data.topics`), in alphabetical order, are cut into pieces of 64 characters,
    as classes from 0; the target at each position is the character after it. The last tenth of the text is
    the test part. Its length and its alphabet differ a little between versions of Python.

    Raises:
        ValueError: this Python was installed without its documentation.

    >>> text = bp.data.text()
    >>> text.tokens, text.x.shape[1:] == text.y.shape[1:]
    (True, True)
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("--dataset=text: this Python has no pydoc_data.topics to read") from error
    written = "\n".join(topics[name] for name in sorted(topics))
    alphabet, codes = np.unique(np.array(list(written)), return_inverse=True)
    pieces = (len(codes) - 1) // LENGTH
    x, y = (
        codes[shift : shift + pieces * LENGTH].reshape(pieces, LENGTH).astype(np.int32) for shift in (0, 1)
    )
    train = pieces - pieces // 10
    description = (
        f"Python's documentation, {len(written):,} characters of {len(alphabet)} kinds: {train:,} pieces of "
        f"{LENGTH} for training and {pieces - train:,} for test"
    )
    return Dataset("text", x[:train], y[:train], x[train:], y[train:], len(alphabet), description)
