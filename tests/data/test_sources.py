"""Where pictures come from: every layout that is read, and every broken one that is refused."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from redoubt.data import SPLITS, load_source, photos, prepare
from redoubt.data import sources as module
from redoubt.data.sources import read_idx
from redoubt.errors import InvalidInput
from redoubt.evaluation.overlap import fresh

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    """Neither system datasets nor the network: what a test did not write is missing."""
    def no_download(class_name, root):
        raise InvalidInput(f"{class_name} is not in {root} and could not be downloaded")

    monkeypatch.setattr(module, "_SYSTEM_DATASETS", tmp_path / "nowhere")
    monkeypatch.setattr(module, "_download", no_download)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, *, packed, skip=()):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (n, 28, 28)).astype(np.uint8) if kind == "images" else
              (np.arange(n) % 10).astype(np.uint8) for n in (30, 20) for kind in ("images", "labels")]
    for name, array in zip(FILES, arrays, strict=True):
        if name not in skip:
            data = idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return arrays


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("layout", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_idx_files_are_found_plain_or_packed_in_every_layout(tmp_path, layout, packed):
    arrays = write_idx(tmp_path / layout, packed=packed)
    source = load_source("fashion-mnist", tmp_path)
    assert source.train_images.shape == (30, 1, 28, 28)
    assert (source.train_images[:, 0] == arrays[0]).all()
    assert (source.test_labels == arrays[3]).all()
    assert source.classes[9] == "Ankle boot"


def test_the_data_folder_may_come_from_the_environment(tmp_path, monkeypatch):
    write_idx(tmp_path / "mnist", packed=False)
    monkeypatch.setenv("REDOUBT_DATA", str(tmp_path))
    assert load_source("mnist").name == "mnist"


@pytest.mark.parametrize("missing", FILES)
def test_a_partly_missing_copy_names_what_is_missing(tmp_path, missing):
    write_idx(tmp_path, packed=True, skip=(missing,))
    with pytest.raises(InvalidInput, match=f"lacks {missing}"):
        load_source("mnist", tmp_path)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_no_copy_and_no_network_says_so(tmp_path, dataset):
    with pytest.raises(InvalidInput, match="could not be downloaded"):
        load_source(dataset, tmp_path)


def _damage(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(b ^ 0xFF for b in data[middle : middle + 40]) + data[middle + 40 :]


GOOD = idx(np.arange(200, dtype=np.uint8).reshape(2, 10, 10))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty", b""), ("short header", GOOD[:6]), ("truncated", GOOD[:-1]), ("too long", GOOD + b"x"),
        ("another type", GOOD[:2] + b"\x0d" + GOOD[3:]), ("a web page", b"<html>not found</html>"),
        ("no gzip.gz", GOOD), ("truncated.gz", gzip.compress(GOOD)[:-20]), ("damaged.gz", _damage(gzip.compress(GOOD))),
    ],
)
def test_a_corrupt_idx_file_is_refused_by_name(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInput, match=r"cannot be read .*fetch it again"):
        read_idx(tmp_path / name)


@pytest.mark.parametrize("name", ["fashion", "", "folder:", "npz:", "DIGITS", "folder"])
def test_an_unknown_dataset_names_the_valid_ones(name):
    with pytest.raises(InvalidInput, match="digits, fashion-mnist, mnist, photo-patches, folder:PATH, npz:PATH"):
        load_source(name)


def write_folder(root, mode="RGB", size=(12, 12), classes=("cat", "dog"), each=3, bands=1):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            colour = 20 * label + i
            Image.new(mode, size, (colour,) * bands if bands > 1 else colour).save(root / name / f"{i}.png")


@pytest.mark.parametrize(("mode", "bands", "channels"), [("L", 1, 1), ("RGB", 3, 3), ("RGBA", 4, 3)])
def test_a_folder_gives_grey_or_colour_by_its_pictures(tmp_path, mode, bands, channels):
    write_folder(tmp_path, mode=mode, bands=bands)
    source = load_source(f"folder:{tmp_path}")
    assert source.train_images.shape == (6, channels, 12, 12)
    found = zip(source.train_labels.tolist(), source.train_images[:, 0, 0, 0].tolist(), strict=True)
    assert sorted(found) == [(0, 0), (0, 1), (0, 2), (1, 20), (1, 21), (1, 22)]
    assert source.classes == ("cat", "dog")
    assert source.test_images is None


def test_a_folder_may_bring_its_own_test_part_and_be_resized(tmp_path):
    write_folder(tmp_path / "train", mode="L")
    write_folder(tmp_path / "test", mode="L", each=2)
    source = load_source(f"folder:{tmp_path}", size=8)
    assert source.train_images.shape == (6, 1, 8, 8)
    assert source.test_images.shape == (4, 1, 8, 8)


def test_what_a_user_brings_is_mixed_and_always_in_the_same_way(tmp_path):
    """Folders are read class by class, and so are many arrays: the first pictures of a split must be of every class."""
    for part in ("train", "test"):
        write_folder(tmp_path / "p" / part, mode="L", each=60, classes=("a", "b", "c"))
    folder = load_source(f"folder:{tmp_path / 'p'}")
    ordered = np.repeat(np.arange(3), 60)
    x = np.tile(20 * ordered[:, None, None] + np.tile(np.arange(60), 3)[:, None, None], (1, 12, 12)).astype(np.uint8)
    array = load_source(npz(tmp_path / "d.npz", x_train=x, y_train=ordered, x_test=x, y_test=ordered))
    for source in (folder, array):
        for images, labels in ((source.train_images, source.train_labels), (source.test_images, source.test_labels)):
            assert np.bincount(labels[:30], minlength=3).min() >= 5
            pairs = sorted(zip(labels.tolist(), images[:, 0, 0, 0].tolist(), strict=True))
            assert pairs == [(label, 20 * label + i) for label in range(3) for i in range(60)]
    assert (folder.train_images == load_source(f"folder:{tmp_path / 'p'}").train_images).all()


def test_sixteen_bit_pictures_keep_their_contrast(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
        Image.fromarray(ramp).save(tmp_path / name / "x.png")
    picture = load_source(f"folder:{tmp_path}").train_images[0, 0].ravel().astype(int)
    assert (picture[0], picture[-1]) == (0, 255)
    assert (np.diff(picture) > 0).all()


def test_folders_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(InvalidInput, match="is no folder"):
        load_source(f"folder:{tmp_path / 'none'}")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InvalidInput, match="1 class folders"):
        load_source(f"folder:{tmp_path}")
    (tmp_path / "dog").mkdir()
    with pytest.raises(InvalidInput, match="holds no pictures"):
        load_source(f"folder:{tmp_path}")
    Image.new("L", (12, 9)).save(tmp_path / "cat" / "wide.png")
    with pytest.raises(InvalidInput, match=r"wide\.png.*not square"):
        load_source(f"folder:{tmp_path}")


def test_a_truncated_picture_is_named(tmp_path):
    write_folder(tmp_path, mode="L", size=(40, 40))
    file = tmp_path / "dog" / "1.png"
    Image.effect_noise((40, 40), 90).save(file)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(InvalidInput, match=r"1\.png cannot be used"):
        load_source(f"folder:{tmp_path}")


def npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 9, 9), (6, 1, 9, 9)), ((6, 9, 9, 3), (6, 3, 9, 9)), ((6, 3, 9, 9), (6, 3, 9, 9)),
     ((6, 9, 9, 1), (6, 1, 9, 9))],
)
def test_arrays_are_taken_in_every_usual_order(tmp_path, shape, expected):
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    source = load_source(npz(tmp_path / "d.npz", x_train=x, y_train=np.arange(6) % 2, x_test=x, y_test=np.ones(6)))
    assert source.train_images.shape == source.test_images.shape == expected
    assert source.classes == ("0", "1")


def test_float_arrays_are_read_as_shares_of_255(tmp_path):
    x = np.array([0, 0.5, 1.0]).repeat(64).reshape(3, 8, 8)
    source = load_source(npz(tmp_path / "d.npz", x_train=x, y_train=[0, 1, 1], classes=["no", "yes"]))
    found = zip(source.train_labels.tolist(), source.train_images[:, 0, 0, 0].tolist(), strict=True)
    assert sorted(found) == [(0, 0), (1, 128), (1, 255)]
    assert source.classes == ("no", "yes")


X, Y = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": X}, "lacks y_train"),
        ({"x_train": X, "y_train": Y[:3]}, "4 training pictures but 3 labels"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "0 labels"),
        ({"x_train": X[:, :, :5], "y_train": Y}, "must be square"),
        ({"x_train": X[:, :, :, None].repeat(2, 3), "y_train": Y}, "grey or colour"),
        ({"x_train": X.astype(np.int32), "y_train": Y}, "must be uint8"),
        ({"x_train": X + 1.5, "y_train": Y}, "outside"),
        ({"x_train": X * np.nan, "y_train": Y}, "outside"),
        ({"x_train": X, "y_train": Y - 1}, "labels must be 0 to"),
        ({"x_train": X, "y_train": Y, "classes": np.array(["one"])}, "labels must be 0 to 0"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "both or neither"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :6, :6], "y_test": Y}, "training pictures differ"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 5}, "test labels must be"),
        ({"x_train": np.array([{}], dtype=object), "y_train": Y}, "cannot be read"),
    ],
)
def test_arrays_that_cannot_be_used_say_why(tmp_path, arrays, message):
    with pytest.raises(InvalidInput, match=message):
        load_source(npz(tmp_path / "d.npz", **arrays))


def test_what_is_no_npz_is_refused(tmp_path):
    good = tmp_path / "good.npz"
    np.savez_compressed(good, x_train=np.random.default_rng(0).integers(0, 255, (99, 8, 8)), y_train=np.zeros(99))
    np.save(tmp_path / "array.npy", X)
    contents = {"text.npz": b"hello", "cut.npz": good.read_bytes()[:-30], "damaged.npz": _damage(good.read_bytes()),
                "array.npz": (tmp_path / "array.npy").read_bytes()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=r"cannot be read|is no \.npz file: numpy\.savez") as refused:
            load_source(f"npz:{tmp_path / name}")
        assert "pickle" not in str(refused.value)
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_source(f"npz:{tmp_path / 'missing.npz'}")


def test_the_digits_have_seventeen_levels():
    source = load_source("digits")
    assert source.train_images.shape == (1797, 1, 8, 8)
    assert (source.levels, source.train_images.max()) == (16, 16)


def test_photo_patches_come_from_blocks_that_share_no_pixel():
    pytest.importorskip("skimage")
    source = load_source("photo-patches")
    assert source.train_images.shape[1:] == (3, 32, 32) and len(source.classes) == 10
    assert (np.bincount(source.train_labels) >= 25).all()
    one = source.groups == 0
    assert one.sum() == 25 and len(set(source.train_labels[one])) == 1
    # Neighbours in one row of a block are four pixels apart, and the first block begins the photograph.
    first, second = source.train_images[one][:2]
    assert (first[:, :, 4:] == second[:, :, :-4]).all()


def test_photo_patches_without_their_package_say_what_to_install(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else real(name))
    with pytest.raises(InvalidInput, match="pip install scikit-image"):
        load_source("photo-patches")


def test_patches_between_keep_their_distance_from_what_is_held_out(monkeypatch):
    """On photographs whose pixels tell where they lie."""
    rows, columns = np.mgrid[:427, :640]
    where = np.stack([rows % 256, columns % 256, rows // 256 * 16 + columns // 256]).astype(np.uint8)
    monkeypatch.setattr(photos, "_read", lambda name, package: where)
    _, labels, blocks = photos.cut_patches()
    held_out = np.random.default_rng(0).permutation(blocks.max() + 1)[::2]
    patches, owners = photos.cut_between(held_out)
    assert (np.bincount(owners) <= photos.MOST_BETWEEN).all() and len(set(owners.tolist())) == 10
    low = patches[:, :, 0, 0].astype(int)
    tops, lefts = low[:, 0] + 256 * (low[:, 2] // 16), low[:, 1] + 256 * (low[:, 2] % 16)
    assert len(set(zip(owners, tops, lefts, strict=True))) == len(patches)
    corners = [(top, left) for top in range(0, 380, 80) for left in range(0, 593, 80)]
    for label in range(10):
        of_label = np.unique(blocks[labels == label])
        assert len(of_label) == len(corners)
        for block in np.intersect1d(of_label, held_out):
            top, left = corners[block - of_label[0]]
            mine = owners == label
            down = np.maximum(top - (tops[mine] + 32), tops[mine] - (top + 48))
            across = np.maximum(left - (lefts[mine] + 32), lefts[mine] - (left + 48))
            assert np.maximum(down, across).min() >= 32
    assert ((tops % 80 > 16) | (lefts % 80 > 16)).mean() > 0.5   # most of them lie across what no block reaches


def test_nothing_that_is_held_out_was_trained_on(tmp_path):
    """What an evaluation refuses. Round some photographs lies black, which is the same everywhere."""
    pytest.importorskip("skimage")
    prepared = prepare(load_source("photo-patches"), tmp_path / "data")
    train = np.array(prepared.arrays("train")[0])
    for split in SPLITS[1:]:
        assert fresh(np.array(prepared.arrays(split)[0]), train).all(), split
