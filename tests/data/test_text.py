"""The text, and examples as their own targets."""

import numpy as np
import pytest

from bpresearch import data


def test_each_target_is_the_next_character():
    text = data.text()
    assert text.tokens and text.outputs == text.classes > text.x.max()
    whole_x, whole_y = (
        np.concatenate([a, b]).ravel() for a, b in ((text.x, text.x_test), (text.y, text.y_test))
    )
    np.testing.assert_array_equal(whole_x[1:], whole_y[:-1])
    assert text.x.shape[1:] == text.input_shape == (64,)
    assert len(text.x_test) == (len(text.x) + len(text.x_test)) // 10


def test_the_text_is_pythons_documentation():
    from pydoc_data.topics import topics

    text = data.text()
    alphabet = sorted(set("\n".join(topics[name] for name in sorted(topics))))
    first = "".join(alphabet[code] for code in text.x[0])
    assert first == topics[min(topics)][:64]


def test_a_reconstruction_has_its_examples_as_targets():
    digits = data.digits()
    same = data.reconstruction(digits)
    assert same.classes is None and same.outputs == 64
    np.testing.assert_array_equal(same.y, digits.x.reshape(-1, 64))
    np.testing.assert_array_equal(same.y_test, digits.x_test.reshape(-1, 64))
    with pytest.raises(ValueError, match="tokens cannot be reconstructed"):
        data.reconstruction(data.text())
