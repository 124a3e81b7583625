"""Data on disk as users have it: formats, folder layouts, broken files; and the drawing of samples."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pxp_optimize.optimize.data.datasets import Dataset, Split, class_logits, imagenet_synsets, open_dataset
from pxp_optimize.optimize.data.images import Transform, content_hash, decode
from pxp_optimize.optimize.data.sampling import draw_splits, pick_classes
from pxp_optimize.studies.errors import UserError
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR)


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 4) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture(10 * label + i).save(root / name / f"{i}.png")
    return root


def opened(spec: str | Path, tmp_path: Path, seed: int = 0) -> Dataset:
    return open_dataset(str(spec), seed=seed, cache=tmp_path / "cache")


def labelled(*counts: int) -> Dataset:
    """A data set of blank images: `counts[c]` of class c, in each split."""
    labels = np.repeat(np.arange(len(counts)), counts)
    split = Split(labels, np.zeros((len(labels), 1, 1, 3), dtype=np.uint8))
    return Dataset("blank", tuple(f"c{i}" for i in range(len(counts))), None, split, split)


# ------------------------------------------------------------------------------------------ digits


def test_digits_are_all_there_and_split_the_same_way_for_every_seed(tmp_path: Path) -> None:
    first, second = opened("digits", tmp_path, seed=0), opened("digits", tmp_path, seed=1)
    assert len(first.train) + len(first.val) == 1797
    assert first.classes == tuple("0123456789")
    assert np.array_equal(first.val.labels, second.val.labels)
    assert np.array_equal(first.train.images, second.train.images)
    counts = np.bincount(first.train.labels) - np.bincount(first.val.labels)
    assert set(counts.tolist()) <= {0, 1}

    pixels, kept = decode(first.val, np.arange(5), Transform(size=32, resize=32))
    assert pixels.shape == (5, 3, 32, 32)
    assert torch.equal(pixels[:, 0], pixels[:, 1]) and torch.equal(pixels[:, 0], pixels[:, 2])
    assert pixels.max() > 200 and pixels.min() == 0
    assert kept.tolist() == [0, 1, 2, 3, 4]


# ----------------------------------------------------------------------------------------- folders


def test_folder_with_train_and_val(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", each=3)
    image_folder(tmp_path / "val", each=2)
    data = opened(tmp_path, tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.logits is None
    assert np.bincount(data.train.labels).tolist() == [3, 3]
    assert np.bincount(data.val.labels).tolist() == [2, 2]


def test_folder_of_classes_is_halved_by_the_seed(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", each=9)
    splits = {seed: opened(tmp_path / "pets", tmp_path, seed) for seed in (0, 0, 1)}
    assert np.bincount(splits[0].train.labels).tolist() == [5, 5]
    assert set(splits[0].train.images).isdisjoint(splits[0].val.images)
    assert splits[0].val.images == opened(tmp_path / "pets", tmp_path, 0).val.images
    assert splits[0].val.images != splits[1].val.images


def test_synset_folders_are_mapped_to_imagenet_logits(tmp_path: Path) -> None:
    data = opened(image_folder(tmp_path / "net", ("n02102040", "n01440764")), tmp_path)
    categories = ResNet18_Weights.DEFAULT.meta["categories"]
    assert data.logits is not None
    assert [categories[i] for i in data.logits] == ["tench", "English springer"]
    assert class_logits(data, 1000) == data.logits
    assert class_logits(data, 2) == (0, 1)  # a network made for these two classes
    with pytest.raises(UserError, match="100 outputs"):
        class_logits(data, 100)


def test_synset_list_is_complete() -> None:
    synsets = imagenet_synsets()
    assert list(synsets.values()) == list(range(1000))
    assert synsets["n15075141"] == 999


def test_hidden_files_and_other_files_are_no_images(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / "._0.png").write_bytes(b"left by a file manager")
    (root / ".git").mkdir()
    (root / "cat" / "more").mkdir()
    picture(5).save(root / "cat" / "more" / "DEEP.JPG")
    data = opened(root, tmp_path)
    assert len(data.train) + len(data.val) == 9


def test_links_give_no_image_twice(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    before = opened(root, tmp_path)
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "cat" / "up").symlink_to(root)  # and with it the other class's images
    first = sorted((root / "dog").iterdir())[0]
    (root / "dog" / "again.png").symlink_to(first)
    (tmp_path / "elsewhere").mkdir()
    picture(7).save(tmp_path / "elsewhere" / "far.png")
    (root / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    data = opened(root, tmp_path)
    paths: list[list[Path]] = [[], []]
    for split in (data.train, data.val):
        for path, label in zip(split.images, split.labels, strict=True):
            paths[label].append(Path(path).resolve())
    assert len(paths[1]) == len(set(paths[1])) == 5  # its own four, and the linked one
    assert len(paths[0]) == len(set(paths[0]))
    assert len(before.train) + len(before.val) == 8


@pytest.mark.parametrize(
    ("train", "val", "others"),
    [
        ("Training", "Testing", ()),
        ("Train", "Val", ()),
        ("train", "valid", ()),
        ("train", "validation", ()),
        ("train", "test", ()),
        ("train", "val", ("test",)),
        ("TRAIN", "VALID", ("TEST",)),
        ("training_set", "test_set", ()),
        ("seg_train", "seg_test", ("seg_pred",)),
        ("TrainImages", "ValImages", ("TestImages",)),
        ("train", "images-dev", ()),
        ("train", "val", ("masks", "train_extra")),
    ],
)
def test_splits_by_the_names_that_people_give_them(
    tmp_path: Path, train: str, val: str, others: tuple[str, ...]
) -> None:
    for each, name in enumerate((train, val, *others), 3):
        image_folder(tmp_path / "data" / name, ("ant", "bee"), each)
    data = opened(tmp_path / "data", tmp_path)
    assert data.classes == ("ant", "bee")
    for split, name, each in ((data.train, train, 3), (data.val, val, 4)):
        assert np.bincount(split.labels).tolist() == [each, each]
        assert {path.parent.parent.name for path in split.images} == {name}


@pytest.mark.parametrize(
    "classes", [("bus", "car", "train"), ("bullet_train", "test_tube"), ("control", "test"), ("Train", "Val_d_Isere")]
)
def test_classes_that_are_called_like_splits(tmp_path: Path, classes: tuple[str, ...]) -> None:
    root = image_folder(tmp_path / "data", classes)
    assert opened(root, tmp_path).classes == classes


@pytest.mark.parametrize("names", [("bullet_train", "test_tube"), ("cat", "dog")])
@pytest.mark.parametrize("inner", [("2024",), ("2024", "2025")])
def test_folders_in_classes_are_no_classes(tmp_path: Path, names: tuple[str, ...], inner: tuple[str, ...]) -> None:
    root = image_folder(tmp_path / "data", names)
    for name in names:
        image_folder(root / name, inner, each=2)
    data = opened(root, tmp_path)
    assert data.classes == names
    assert len(data.train) + len(data.val) == 2 * (4 + 2 * len(inner))


@pytest.mark.parametrize(
    "names", [("tr", "te"), ("fold1", "fold2", "fold3"), ("trainval", "held_out"), ("train_val", "check")]
)
def test_splits_under_other_names_are_not_read_as_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        image_folder(tmp_path / "data" / name)
    with pytest.raises(UserError, match=r"hold the same folders.*train/ \(train, training\) and val/ \(val, valid"):
        opened(tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: image_folder(root / "Testing"), "no train/ folder beside Testing/"),
        (lambda root: (image_folder(root / "Train"), image_folder(root / "x", ("a", "b"))), "no val/ folder"),
        (lambda root: None, "no class folders"),
        (lambda root: root.rmdir(), "no such folder"),
        (lambda root: (root / "cat").mkdir(), "no images"),
        (lambda root: image_folder(root, ("cat",)), "at least two"),
        (lambda root: image_folder(root / "train"), "no val/"),
        (lambda root: (image_folder(root / "train"), image_folder(root / "val", ("cat", "cow"))), "cow, dog"),
    ],
)
def test_unfit_folder_is_refused(tmp_path: Path, prepare, message: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    prepare(root)
    with pytest.raises(UserError, match=message) as caught:
        opened(root, tmp_path)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- imagenette


def test_imagenette_without_a_network_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match=r"can not download imagenette .*no route to host"):
        opened("imagenette", tmp_path)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_imagenette_is_unpacked_whole_then_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Imagenette

    def unpack(url: str, root: str, md5: str) -> None:
        for part in ("train", "val"):
            image_folder(Path(root) / "imagenette2-320" / part, tuple(Imagenette._WNID_TO_CLASS), each=1)
            for file in list(Path(root).rglob("*.png")):
                file.rename(file.with_suffix(".jpeg"))

    monkeypatch.setattr("torchvision.datasets.imagenette.download_and_extract_archive", unpack)
    data = opened("imagenette", tmp_path)
    assert data.classes[:2] == ("tench", "English springer")
    assert data.logits == (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    monkeypatch.undo()
    assert opened("imagenette", tmp_path).val.images == data.val.images


# ----------------------------------------------------------------------------------------- classes


def test_classes_are_picked_by_name_index_or_number(tmp_path: Path) -> None:
    data = labelled(4, 4, 4, 4)
    assert pick_classes(data, None, 0) == (0, 1, 2, 3)
    assert pick_classes(data, ("c3", "1", "c1"), 0) == (1, 3)
    drawn = {pick_classes(data, 2, seed) for seed in range(20)}
    assert all(len(classes) == 2 for classes in drawn) and len(drawn) > 1
    refused = {("c9", "c1"): "no class 'c9'", 7: "draw 2 to 4", 1: "draw 2", ("c1",): "at least two"}
    for wrong, message in refused.items():
        with pytest.raises(UserError, match=message):
            pick_classes(data, wrong, 0)


# ------------------------------------------------------------------------------------------ splits

counts = st.lists(st.integers(4, 40), min_size=2, max_size=6)


@given(counts=counts, seed=st.integers(0, 2**32 - 1), draw=st.data())
def test_drawn_samples_are_disjoint_stratified_and_decided_by_the_seed(counts, seed, draw) -> None:
    data, classes, total = labelled(*counts), range(len(counts)), sum(counts)
    search = draw.draw(st.integers(len(counts), total - len(counts)))
    holdout = draw.draw(st.integers(len(counts), total - search))
    drawn = draw_splits(data, classes, 3, search, holdout, seed)

    sizes = {name: len(indices) for name, indices in drawn.items()}
    assert sizes == {"reference": 3 * len(counts), "search": search, "holdout": holdout}
    assert set(drawn["search"].tolist()).isdisjoint(drawn["holdout"].tolist())
    for indices in drawn.values():
        assert len(set(indices.tolist())) == len(indices)
    assert np.bincount(data.train.labels[drawn["reference"]]).tolist() == [3] * len(counts)
    share = np.bincount(data.val.labels[drawn["search"]], minlength=len(counts))
    assert (share >= 1).all()
    # One image each, the rest in proportion, rounded.
    spare = np.array(counts) - 2
    exact = 1 + (search - len(counts)) * spare / spare.sum()
    assert (np.abs(share - exact) < 1).all()

    again = draw_splits(data, classes, 3, search, holdout, seed)
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)


@given(count=st.integers(2, 30), classes=st.integers(2, 8), seed=st.integers(0, 1000))
def test_by_default_classes_of_one_size_are_drawn_evenly(count: int, classes: int, seed: int) -> None:
    data = labelled(*[count] * classes)
    drawn = draw_splits(data, range(classes), 1, None, None, seed)
    for name in ("search", "holdout"):
        share = np.bincount(data.val.labels[drawn[name]], minlength=classes)
        assert len(drawn[name]) == min(500, count * classes // 2)
        assert share.max() - share.min() <= 1


def test_defaults_and_choices_do_not_disturb_each_other() -> None:
    data = labelled(900, 900)
    drawn = draw_splits(data, [0, 1], 10, None, None, 3)
    assert len(drawn["search"]) == len(drawn["holdout"]) == 500
    assert len(draw_splits(data, [0, 1], 10, 1700, None, 3)["holdout"]) == 100
    assert len(draw_splits(data, [0, 1], 10, None, 1700, 3)["search"]) == 100
    smaller = draw_splits(data, [0, 1], 10, 200, 500, 3)
    assert set(smaller["holdout"].tolist()) == set(drawn["holdout"].tolist())
    assert not np.array_equal(drawn["search"], draw_splits(data, [0, 1], 10, None, None, 4)["search"])


@pytest.mark.parametrize(
    ("counts", "asked", "message"),
    [
        ((9, 9), (10, None, None), "class c0 has 9 training images"),
        ((9, 1), (1, None, None), "class c1 has too few validation images"),
        ((9, 9), (1, 1, None), "--search-samples 1"),
        ((9, 9), (1, None, 1), "--holdout-samples 1"),
        ((9, 9), (1, 10, 10), "has 18 validation images"),
        ((9, 9), (1, 17, None), "validation images"),
    ],
)
def test_too_few_images_are_refused(counts, asked, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_splits(labelled(*counts), [0, 1], *asked, seed=0)


# ---------------------------------------------------------------------------------------- decoding


def of_files(*files: Path) -> Split:
    return Split(np.zeros(len(files), dtype=np.int64), list(files))


@pytest.mark.parametrize("weights", [ResNet18_Weights.DEFAULT, EfficientNet_B0_Weights.DEFAULT])
@pytest.mark.parametrize("size", [(300, 260), (97, 213), (500, 33)])
def test_decodes_as_torchvisions_transform_does(tmp_path: Path, weights, size: tuple[int, int]) -> None:
    file = tmp_path / "a.jpg"
    picture(0, size).save(file)
    preset = weights.transforms()
    transform = Transform(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation,
    )
    pixels, _ = decode(of_files(file), np.array([0]), transform)
    expected = preset(Image.open(file).convert("RGB"))
    assert torch.equal(transform.normalize(pixels)[0], expected)


def test_every_colour_mode_becomes_rgb(tmp_path: Path) -> None:
    colour = picture(1, (40, 40))
    files = {}
    for name, mode in (
        ("rgb.png", "RGB"),
        ("rgb.bmp", "RGB"),
        ("rgb.webp", "RGB"),
        ("palette.png", "P"),
        ("palette.gif", "P"),
        ("alpha.png", "RGBA"),
        ("cmyk.jpg", "CMYK"),
        ("grey.png", "L"),
        ("grey.jpeg", "L"),
        ("bits.png", "1"),
    ):
        files[name] = tmp_path / name
        colour.convert(mode).save(files[name])
    deep = tmp_path / "deep.png"  # 16 bits a pixel
    Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257).save(deep)

    transform = Transform(size=32, resize=40)
    pixels, kept = decode(of_files(*files.values(), deep), np.arange(11), transform)
    assert pixels.shape == (11, 3, 32, 32) and len(kept) == 11
    decoded = dict(zip([*files, "deep.png"], pixels.float(), strict=True))
    for exact in ("rgb.bmp", "alpha.png"):
        assert torch.equal(decoded["rgb.png"], decoded[exact])
    for near, difference in (("rgb.webp", 12), ("palette.png", 20), ("cmyk.jpg", 12)):
        assert (decoded["rgb.png"] - decoded[near]).abs().mean() < difference
    assert (decoded["grey.png"] - decoded["deep.png"]).abs().max() <= 1


def test_palette_with_transparency(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file = tmp_path / "a.png"
    picture(0).convert("P").save(file, transparency=bytes(range(256)))
    decode(of_files(file), np.array([0]), Transform(size=8, resize=8))
    assert not recwarn


def broken_files(tmp_path: Path) -> tuple[Split, list[Path]]:
    good, text, short, empty = (tmp_path / f"{name}.png" for name in ("good", "text", "short", "empty"))
    picture(0).save(good)
    text.write_text("this is no image")
    short.write_bytes(good.read_bytes()[:200])
    empty.write_bytes(b"")
    return of_files(text, good, short, empty, good), [text, short, empty]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    """A camera stores what its sensor saw, and how it was held: for each way the picture is the same again."""
    upright = Image.new("RGB", (64, 64), "black")
    upright.paste("red", (0, 0, 32, 32))
    upright.paste("blue", (32, 32, 64, 64))
    upright.paste("lime", (32, 0, 64, 32))
    way = Image.Transpose
    stored = {
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_90,  # shown turned by a quarter clockwise
        7: way.TRANSVERSE,
        8: way.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{kind}"
    (upright if stored is None else upright.transpose(stored)).save(path, exif=exif)
    pixels, _ = decode(Split(np.array([0]), [path]), np.array([0]), Transform(size=64, resize=64))
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    inner = torch.tensor([16, 48])
    corners, wanted = (image[:, inner][:, :, inner].int() for image in (pixels[0], expected))
    assert (corners - wanted).abs().max() < 30  # what JPEG and WebP lose


def test_sixteen_bits_stand_upright_and_broken_metadata_costs_nothing(tmp_path: Path) -> None:
    rows = np.repeat(np.arange(4, dtype=np.uint16)[:, None] << 12, 4, axis=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rows).save(tmp_path / "deep.png", exif=exif)
    picture(1, (32, 32)).save(tmp_path / "odd.png", exif=b"Exif\x00\x00no metadata at all")
    picture(1, (32, 32)).save(tmp_path / "none.png")

    def read(name: str, size: int) -> torch.Tensor:
        return decode(Split(np.array([0]), [tmp_path / name]), np.array([0]), Transform(size, size))[0][0]

    assert read("deep.png", 4)[0, 0].tolist() == [48, 32, 16, 0]
    assert torch.equal(read("odd.png", 32), read("none.png", 32))


def test_broken_images_are_named(tmp_path: Path) -> None:
    split, broken = broken_files(tmp_path)
    for row, file in zip((0, 2, 3), broken, strict=True):
        with pytest.raises(UserError, match=f"{file.name}.*--skip-broken") as caught:
            decode(split, np.array([1, row, 4]), Transform(size=8, resize=8))
        assert "\n" not in str(caught.value)


def test_broken_images_are_skipped_on_request(tmp_path: Path) -> None:
    split, _ = broken_files(tmp_path)
    pixels, kept = decode(split, np.arange(5), Transform(size=8, resize=8), skip_broken=True)
    assert kept.tolist() == [1, 4]
    assert torch.equal(pixels[0], pixels[1])
    with pytest.raises(UserError, match="none of the images"):
        decode(split, np.array([0, 2]), Transform(size=8, resize=8), skip_broken=True)


def test_decodes_into_a_tensor_that_is_given(tmp_path: Path) -> None:
    split, _ = broken_files(tmp_path)
    transform = Transform(size=8, resize=8)
    room = torch.full((5, 3, 8, 8), 9, dtype=torch.uint8)
    pixels, _ = decode(split, np.arange(5), transform, skip_broken=True, out=room)
    assert pixels.data_ptr() == room.data_ptr()
    assert torch.equal(pixels, decode(split, np.array([1, 4]), transform)[0])


def test_decoding_reports_its_progress(tmp_path: Path) -> None:
    from contextlib import contextmanager

    seen: list[int] = []

    @contextmanager
    def progress(label, total):
        assert (label, total) == ("decode images", 3)
        yield seen.append

    good = broken_files(tmp_path)[0].take(np.array([1, 4]))
    decode(good, np.array([0, 1, 0]), Transform(8, 8), progress=progress)
    assert sum(seen) == 3


def test_content_hash_tells_pixels_targets_and_shapes_apart() -> None:
    pixels, targets = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    hashes = {
        content_hash(pixels, targets),
        content_hash(pixels + 1, targets),
        content_hash(pixels, targets + 1),
        content_hash(pixels.view(2, 3, 2, 8), targets),
    }
    assert len(hashes) == 4
    assert content_hash(pixels.contiguous(memory_format=torch.channels_last), targets) in hashes
