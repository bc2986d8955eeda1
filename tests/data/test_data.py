"""Data sets against published values and their sources."""

import gzip
import io
import random
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import datasets

from bpresearch import data
from bpresearch.data.files import TYPES, read_idx


def test_mnist1d_is_the_published_file():
    """Values read from mnist1d_data.pkl in the authors' repository."""
    found = data.published_mnist1d()
    close = {"rtol": 0, "atol": 5e-15}
    first = [-0.3320056673693902, -0.4719103656557236, -0.778697076293495, -1.0097408265367047]
    np.testing.assert_allclose(found["x"][0, :4], first, **close)
    last = [-1.2162451343416705, -1.4649417006350856, -1.6509928567520655]
    np.testing.assert_allclose(found["x"][3999, -3:], last, **close)
    first = [-0.07877078047732886, -0.21073170588642925, -0.09175138109239452]
    np.testing.assert_allclose(found["x_test"][0, :3], first, **close)
    last = [0.6598756470890784, 0.8777343497528006, 1.193151836835276]
    np.testing.assert_allclose(found["x_test"][999, -3:], last, **close)
    np.testing.assert_allclose(found["x"].sum(), -51.78746787509559, rtol=1e-9)
    np.testing.assert_allclose((found["x"] ** 2).sum(), 159248.2538653486, rtol=1e-12)
    assert np.bincount(found["y"]).tolist() == [398, 396, 411, 394, 394, 402, 401, 404, 402, 398]
    assert np.bincount(found["y_test"]).tolist() == [102, 104, 89, 106, 106, 98, 99, 96, 98, 102]
    assert found["y"][:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]


def test_mnist1d_has_as_many_signals_as_asked_for():
    found = data.published_mnist1d(30, 90)
    assert (found["x"].shape, found["y"].shape) == ((30, 40), (30,))
    assert (found["x_test"].shape, found["y_test"].shape) == ((90, 40), (90,))


def test_generating_mnist1d_leaves_the_random_state_alone():
    data.published_mnist1d.cache_clear()
    np.random.seed(7)
    random.seed(7)
    expected = np.random.RandomState(7).rand(), random.Random(7).random()
    data.published_mnist1d()
    assert (np.random.rand(), random.random()) == expected


SHAPES = {
    "mnist1d": ((4000, 40, 1), 1000, 10),
    "digits": ((1437, 8, 8, 1), 360, 10),
    "wine": ((142, 13), 36, 3),
    "breast_cancer": ((455, 30), 114, 2),
    "diabetes": ((353, 10), 89, None),
    "spirals": ((1000, 2), 1000, 2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_formats_and_standardisation(name):
    found = data.load(name)
    shape, test, classes = SHAPES[name]
    assert found.x.shape == shape and found.x_test.shape == (test, *shape[1:])
    assert found.input_shape == shape[1:]
    assert found.x.dtype == np.float32
    assert found.classes == classes and found.outputs == (classes or 1)
    assert found.y.dtype == (np.int32 if classes else np.float32)
    assert found.y.shape == ((shape[0],) if classes else (shape[0], 1))
    axis = 0 if found.x.ndim == 2 else None
    np.testing.assert_allclose(found.x.mean(axis, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(found.x.std(axis, dtype=np.float64), 1, atol=1e-6)
    assert str(len(found.x)) in found.description.replace(",", "")


@pytest.mark.parametrize("name", SHAPES)
def test_loading_twice_gives_the_same(name):
    first, second = data.load(name), data.load(name)
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.y_test, second.y_test)


def test_digits_are_those_of_scikit_learn_each_once():
    found, source = data.load("digits"), datasets.load_digits()
    whole = np.concatenate([found.x, found.x_test])[..., 0]
    images = (source.images - source.images[0].mean()) / 1.0
    scale, shift = np.polyfit(np.sort(whole, axis=None), np.sort(images, axis=None), 1)
    back = np.round(whole * scale + shift + source.images[0].mean()).astype(int).reshape(-1, 64)
    key = lambda rows: sorted(map(tuple, rows.astype(int).tolist()))  # noqa: E731
    assert key(back) == key(source.images.reshape(-1, 64))


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_feature_vectors_left_as_they_are_are_scikit_learns_rows(name):
    found, source = data.load(name, standardize="none"), getattr(datasets, f"load_{name}")()
    rows = lambda x, y: sorted(map(tuple, np.column_stack([x, y]).astype(np.float32).tolist()))  # noqa: E731
    both = (np.concatenate([found.x, found.x_test]), np.concatenate([found.y, found.y_test]))
    assert rows(*both) == rows(source.data, source.target)
    assert "not standardised" in found.description
    assert "standardised: each feature" in data.load(name).description


def test_numbers_to_predict_are_standardised_with_the_features_or_not_at_all():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    plain = data.dataset("a", x, y, x, y, "", standardize="none")
    np.testing.assert_array_equal(plain.y[:, 0], y)
    assert plain.target_scale == 1
    scaled = data.dataset("a", x, y, x, y, "")
    np.testing.assert_allclose(scaled.y[:, 0] * scaled.target_scale + y.mean(), y, atol=1e-6)
    assert "and the targets" in scaled.description
    with pytest.raises(ValueError, match="standardize=all is not one of features, none"):
        data.dataset("a", x, y, x, y, "", standardize="all")


@pytest.mark.parametrize(("value", "standardize"), [(1e300, "features"), (1e39, "none")])
def test_a_column_that_overflows_is_named(value, standardize):
    x = np.ones((4, 3))
    x[1:3, 2] = [value, -value]
    with pytest.raises(ValueError, match=r"a: feature 2 reaches 1e\+\d+, which overflows"):
        data.dataset("a", x, np.arange(4), x, np.arange(4), "", 4, standardize)
    with pytest.raises(ValueError, match="a: target 2 reaches"):
        data.dataset("a", x[:, :1], x, x[:, :1], x, "", standardize=standardize)


def test_diabetes_is_that_of_scikit_learn_in_units_of_the_training_deviation():
    found, source = data.load("diabetes"), datasets.load_diabetes(scaled=False)
    targets = np.concatenate([found.y, found.y_test])[:, 0] * found.target_scale
    expected = np.sort(source.target)
    np.testing.assert_allclose(np.diff(np.sort(targets)), np.diff(expected), atol=1e-4)


def test_the_test_part_has_no_part_in_standardisation():
    x = np.random.default_rng(0).normal(size=(20, 3))
    near, far = (data.dataset("a", x, x[:, :1], x * s, x[:, :1] * s, "") for s in (1, 100))
    np.testing.assert_array_equal(near.x, far.x)
    np.testing.assert_array_equal(near.y, far.y)


def test_a_constant_feature_becomes_zero():
    x = np.ones((4, 2))
    found = data.dataset("a", x, np.arange(4), x, np.arange(4), "", classes=4)
    np.testing.assert_array_equal(found.x, 0)


def test_spirals_lie_on_their_curves():
    found = data.load("spirals")
    raw = np.concatenate([np.asarray(part) for part in (found.x,)])
    assert np.bincount(found.y).tolist() == [500, 500]
    rotated = -raw[found.y == 1]  # half a turn takes one spiral to the other
    nearest = [np.min(np.linalg.norm(raw[found.y == 0] - point, axis=1)) for point in rotated]
    assert np.median(nearest) < 0.1


@pytest.mark.parametrize(
    ("name", "data_dir", "message"),
    [
        ("mnist", None, "--dataset=mnist is not one of mnist1d"),
        ("digits", "/tmp", "--data_dir=/tmp: --dataset=digits takes none"),
        ("idx", None, "--dataset=idx needs --data_dir"),
        ("npz", "/nowhere/x.npz", "--data_dir=/nowhere/x.npz: there is no such"),
    ],
)
def test_wrong_names_and_folders_are_one_line(name, data_dir, message):
    with pytest.raises(ValueError, match=message) as error:
        data.load(name, data_dir)
    assert "\n" not in str(error.value)


# IDX -----------------------------------------------------------------------------------------------------


def idx_bytes(array):
    code = {np.dtype(t).newbyteorder("="): c for c, t in TYPES.items()}[array.dtype]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(TYPES[code]).tobytes()


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64]),
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    ),
    st.booleans(),
)
def test_an_idx_file_gives_back_its_array(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / "file"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = read_idx(path)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def write_mnist(folder, train=30, test=10, size=6, suffix=".gz", dot="-"):
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, size, size)).astype(np.uint8)
        labels = (np.arange(count) % 5).astype(np.uint8)
        for kind, array in ((f"images{dot}idx3-ubyte", images), (f"labels{dot}idx1-ubyte", labels)):
            content = idx_bytes(array)
            content = gzip.compress(content) if suffix else content
            (folder / f"{part}-{kind}{suffix}").write_bytes(content)


@pytest.mark.parametrize(("suffix", "dot"), [(".gz", "-"), ("", "-"), ("", ".")])
def test_mnists_files_are_read_in_each_of_their_names(tmp_path, suffix, dot):
    write_mnist(tmp_path, suffix=suffix, dot=dot)
    found = data.load("idx", str(tmp_path))
    assert found.x.shape == (30, 6, 6, 1) and found.x_test.shape == (10, 6, 6, 1)
    assert found.classes == 5 and found.y[:6].tolist() == [0, 1, 2, 3, 4, 0]
    np.testing.assert_allclose([found.x.mean(), found.x.std()], [0, 1], atol=1e-5)


def spoil(content, how):
    raw = gzip.decompress(content)
    return {
        "truncated": gzip.compress(raw[:-5]),
        "longer": gzip.compress(raw + b"x"),
        "header only": gzip.compress(raw[:6]),
        "no magic": gzip.compress(b"PK" + raw[2:]),
        "cut gzip": content[:-20],
        "bad checksum": content[:-8] + b"\0\0\0\0" + content[-4:],
        "empty": b"",
    }[how]


@pytest.mark.parametrize(
    "how", ["truncated", "longer", "header only", "no magic", "cut gzip", "bad checksum", "empty"]
)
def test_a_damaged_idx_file_is_one_line_that_names_it(tmp_path, how):
    write_mnist(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(spoil(file.read_bytes(), how))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz: ") as error:
        data.load("idx", str(tmp_path))
    assert "\n" not in str(error.value)


def test_missing_and_mismatched_idx_files_are_named(tmp_path):
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(29, np.uint8))))
    with pytest.raises(ValueError, match="30 train images and 29 train labels"):
        data.load("idx", str(tmp_path))
    labels.unlink()
    with pytest.raises(ValueError, match=r"holds neither train-labels-idx1-ubyte\.gz"):
        data.load("idx", str(tmp_path))
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros((30, 2, 2), np.uint8))))
    with pytest.raises(ValueError, match="array of 3 dimensions, not 1"):
        data.load("idx", str(tmp_path))


# npz -----------------------------------------------------------------------------------------------------


def classes(count=20, **more):
    generator = np.random.default_rng(0)
    return {"x": generator.normal(size=(count, 3)), "y": np.arange(count) % 4, **more}


def test_npz_with_a_split_of_its_own(tmp_path):
    x = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(6) % 3, x_test=x[:2], y_test=[0, 1])
    for where in (tmp_path, tmp_path / "a.npz"):
        found = data.load("npz", str(where))
        assert found.x.shape == (6, 2, 2, 1) and found.classes == 3 and found.y.tolist() == [0, 1, 2] * 2


def test_npz_without_a_split_gets_a_fifth_for_test(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **classes(y=np.linspace(0, 1, 20)))
    found = data.load("npz", str(tmp_path))
    assert len(found.x) == 16 and len(found.x_test) == 4
    assert found.classes is None and found.y.shape == (16, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.arange(19)}, "20 examples in x and 19 in y"),
        ({"y": np.arange(20) - 1}, "y holds the class -1"),
        ({"y": np.full(20, np.nan)}, "y holds NaN"),
        ({"x": np.ones((20, 2), complex)}, "x is of type complex128"),
        ({"x": np.ones(20)}, "x has 1 axes"),
        ({"x": np.array([object()] * 20)}, "cannot be read as .npz without pickles"),
        ({"x_test": np.ones((2, 3))}, "lacks y_test"),
        ({"x_test": np.ones((2, 5)), "y_test": np.ones(2, int)}, "must be equal"),
        (
            {"x_test": np.ones((2, 3)), "y_test": np.ones(2)},
            r"targets are classes \(int64\) and the test targets",
        ),
        (
            {"x_test": np.ones((2, 3)), "y_test": np.full(2, 4)},
            "test part holds the class 4, and the training",
        ),
        ({"y": np.full(20, 2**32 + 1)}, "holds the class 4294967297 among 16 training examples"),
        ({"x": np.ones((20, 0))}, r"an example has shape \(0,\) and holds nothing"),
        (
            {"y": np.ones((20, 2)), "x_test": np.ones((2, 3)), "y_test": np.ones((2, 3))},
            "a training example has 2 targets and a test example 3",
        ),
    ],
)
def test_npz_files_that_do_not_fit_are_one_line(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", **classes(**changes))
    with pytest.raises(ValueError, match=message) as error:
        data.load("npz", str(tmp_path / "a.npz"))
    assert "\n" not in str(error.value)


def test_a_single_example_is_both_parts(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((1, 3)), y=np.array([1]))
    found = data.load("npz", tmp_path / "a.npz")
    np.testing.assert_array_equal(found.x, found.x_test)
    assert (
        found.x.shape == (1, 3)
        and "1 examples for training and 1 (the same one) for test" in found.description
    )


def npy(shape, content=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("x.npy", npy((10**12, 3)), r"x is said to have shape \(1000000000000, 3\), and ends after"),
        ("x.npy", b"text", "cannot be read as .npz"),
        ("x.npy", b"\x93NUMPY\x01\x00\x0a\x00{'descr':1", "cannot be read as .npz"),
        ("x", b"text", "x is not an array"),
        ("x.npy", npy((-5, 3)), "cannot be read as .npz without pickles"),
    ],
)
def test_what_only_claims_to_be_an_array_is_one_line(tmp_path, member, content, message):
    np.savez(tmp_path / "a.npz", y=np.arange(5))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr(member, content)
    with pytest.raises(ValueError, match=message) as error:
        data.load("npz", tmp_path / "a.npz")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut", b"\x93NUMPY"])
def test_a_damaged_npz_file_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read") as error:
        data.load("npz", str(tmp_path))
    assert "\n" not in str(error.value)
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read"):
        data.load("npz", str(tmp_path))


def test_a_folder_with_two_npz_files_is_ambiguous(tmp_path):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", **classes())
    with pytest.raises(ValueError, match=r"holds 2 \.npz files"):
        data.load("npz", str(tmp_path))
