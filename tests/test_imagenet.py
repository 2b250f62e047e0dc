"""Where photographs come from, in which layouts, and what becomes of their pixels."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from torchvision import transforms

from probebook import imagenet
from probebook.imagenet import (
    ImageFiles,
    ImageNetUnavailable,
    NotEnoughImages,
    choose,
    decode,
    find_images,
    stand_in_images,
)

TENCH, GOLDFISH, TISSUE = "n01440764", "n01443537", "n15075141"
SHARED = Path(os.environ.get("PROBELIB_DATA") or "-") / "imagenet"
needs_shared = pytest.mark.skipif(
    not (SHARED / "classes.csv").is_file(), reason="PROBELIB_DATA has no imagenet/classes.csv"
)


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    """Nothing is found but what a test names."""
    monkeypatch.delenv("PROBELIB_DATA", raising=False)
    monkeypatch.delenv("PROBELIB_IMAGENET", raising=False)


def picture(width=40, height=30, seed=0):
    """A smooth coloured picture: every pixel tells where it is."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def put(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture() if image is None else image).save(path, **options)
    return path


def files_of(*paths):
    return ImageFiles(list(paths), np.zeros(len(paths), np.int64), "a test")


def one_sentence(caught):
    """The message, which must read as one sentence."""
    message = str(caught.value)
    assert "\n" not in message
    assert message.count(". ") == 0
    return message


# Class folders


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "val"
    put(root / TISSUE / "b.JPEG", picture(seed=1), format="JPEG")
    put(root / GOLDFISH / "z.png", picture(seed=2))
    put(root / GOLDFISH / "A.Jpg", picture(seed=3), format="JPEG")
    put(root / TENCH / "c.jpeg", picture(seed=4))
    (root / GOLDFISH / "notes.txt").write_text("not an image")
    (root / GOLDFISH / "._A.Jpg").write_bytes(b"left by a Mac")
    (root / ".ipynb_checkpoints").mkdir()
    return root


def test_class_folders_are_read_in_order(folders, monkeypatch):
    found = find_images(folders)
    assert [path.relative_to(folders).as_posix() for path in found.paths] == [
        f"{TENCH}/c.jpeg",
        f"{GOLDFISH}/A.Jpg",
        f"{GOLDFISH}/z.png",
        f"{TISSUE}/b.JPEG",
    ]
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [0, 1, 1, 999]
    assert (len(found), found.stand_in, found.boxes) == (4, False, None)
    assert found.source == "ImageNet photographs in class folders (root)"
    monkeypatch.setenv("PROBELIB_IMAGENET", str(folders))
    named = find_images()
    assert named.paths == found.paths
    assert named.source == "ImageNet photographs in class folders (PROBELIB_IMAGENET)"
    decoded = decode(found, 7, workers=1)
    assert len(decoded) == 4
    assert decoded.skipped == []


@pytest.mark.parametrize("name", ["cats", "n00000000", "train"])
def test_a_folder_that_is_no_class_is_named(folders, name):
    put(folders / name / "x.jpg")
    put(folders / "zebra" / "x.jpg")
    with pytest.raises(ImageNetUnavailable, match=f"the folder '{name}'.*like n01440764") as caught:
        find_images(folders)
    one_sentence(caught)


def test_class_folders_without_images_are_an_error(tmp_path):
    (tmp_path / TENCH).mkdir()
    with pytest.raises(ImageNetUnavailable, match="1 class folders hold no"):
        find_images(tmp_path)


@pytest.mark.parametrize("variable", ["PROBELIB_IMAGENET", None])
def test_what_is_named_and_empty_is_never_passed_over(tmp_path, monkeypatch, variable):
    def find(path):
        if variable is None:
            return find_images(path)
        monkeypatch.setenv(variable, str(path))
        return find_images()

    where = variable or "root"
    with pytest.raises(ImageNetUnavailable, match=f"^{where} is .*holds no images") as caught:
        find(tmp_path)
    one_sentence(caught)
    with pytest.raises(ImageNetUnavailable, match=f"^{where} is .*no folder") as caught:
        find(tmp_path / "absent")
    one_sentence(caught)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ImageNetUnavailable, match="is no folder"):
        find(tmp_path / "file")


# The flat validation set


VAL = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3)]


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "a" / "b" / "c" / "d" / "val"
    for i, name in enumerate(VAL):
        put(folder / name, picture(seed=i), format="JPEG")
    return folder


LABELS = {
    "val.txt": "".join(f"{name} {label}\n" for name, label in zip(VAL, (65, 0, 999), strict=True)),
    "wnids.txt": f"{VAL[0]}\tn01751748\nval/{VAL[1]}  {TENCH}\n{VAL[2][:-5]} {TISSUE}\n",
    "labels.csv": f"filename,label\r\n{VAL[2]},999\r\n{VAL[0]}, 65\r\n{VAL[1]},{TENCH}\r\n",
    "quoted.CSV": f'"{VAL[2]}","999"\n"{VAL[0]}","65"\n"{VAL[1]}","0"\n',
    "LOC_val_solution.csv": (
        "ImageId,PredictionString\n"
        f"{VAL[1][:-5]},{TENCH} 85 1 499 272 {TENCH} 1 2 3 4 \n"
        f"{VAL[0][:-5]},n01751748 0 93 499 234 \n"
        f"ILSVRC2012_val_00009999,n00000000 1 1 2 2 \n{VAL[2][:-5]},{TISSUE} 1 1 2 2 \n"
    ),
}


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("name", LABELS)
def test_a_flat_set_takes_its_labels_from_beside_or_above(flat, name, above):
    (flat / "README.txt").write_text("about the images\n")
    ((flat.parent if above else flat) / name).write_text("\ufeff" + LABELS[name], encoding="utf-8")
    found = find_images(flat)
    assert [path.name for path in found.paths] == VAL
    assert found.labels.tolist() == [65, 0, 999]
    assert found.source == "ImageNet photographs in one folder, with a file of labels (root)"


def test_kaggles_archive_is_read_as_it_is(flat):
    (flat.parents[3] / "LOC_val_solution.csv").write_text(LABELS["LOC_val_solution.csv"])
    assert find_images(flat).labels.tolist() == [65, 0, 999]


def test_a_relative_folder_has_a_folder_above(flat, monkeypatch):
    (flat.parent / "val.txt").write_text(LABELS["val.txt"])
    monkeypatch.chdir(flat)
    assert find_images(".").labels.tolist() == [65, 0, 999]


def test_a_missing_label_is_named(flat):
    (flat / "val.txt").write_text("\n".join(LABELS["val.txt"].splitlines()[:2]))
    with pytest.raises(
        ImageNetUnavailable, match=rf"no label for 1 of the 3 images in root, the first {VAL[2]};"
    ) as caught:
        find_images(flat)
    one_sentence(caught)
    # Another file that is complete is the one that was meant.
    (flat / "whole.csv").write_text(LABELS["labels.csv"])
    assert find_images(flat).labels.tolist() == [65, 0, 999]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (f"{VAL[2]} 1000", "label '1000', which is neither"),
        (f"{VAL[2]} n00000000", "label 'n00000000', which is neither"),
        (f"{VAL[2]} -1", "label '-1', which is neither"),
        (f"{VAL[2]}", "label '', which is neither"),
        (f"{VAL[0]} 66", "label 66, an earlier one 65"),
    ],
)
def test_a_wrong_label_is_named_with_its_line(flat, line, match):
    lines = LABELS["val.txt"].splitlines()[:2]
    (flat / "val.txt").write_text("\n".join([*lines, line]))
    with pytest.raises(ImageNetUnavailable, match=f"line 3 of .*val.txt .*{match}") as caught:
        find_images(flat)
    one_sentence(caught)


@pytest.mark.parametrize("above", [False, True])
def test_the_development_kits_ids_are_not_taken_for_indices(flat, above):
    place = flat.parent if above else flat
    (place / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n171\n")
    with pytest.raises(ImageNetUnavailable, match=r"another order.*val\.txt") as caught:
        find_images(flat)
    one_sentence(caught)
    (flat / "val.txt").write_text(LABELS["val.txt"])
    assert find_images(flat).labels.tolist() == [65, 0, 999]


def test_a_flat_set_without_labels_says_what_to_put_there(flat):
    (flat / "other.txt").write_text("nothing about these images\n" * 3)
    with pytest.raises(ImageNetUnavailable, match=r"3 images and no labels; .*val\.txt") as caught:
        find_images(flat)
    one_sentence(caught)


# classes.csv, and the order of the sources


@pytest.fixture
def listed(tmp_path):
    root = tmp_path / "data" / "imagenet"
    for i, wnid in enumerate((TENCH, GOLDFISH)):
        put(root / "images" / f"{wnid}.jpg", picture(256, 256, seed=i))
    (root / "classes.csv").write_text(
        "index,wnid,label,file\n"
        f'1,{GOLDFISH},"goldfish, Carassius auratus",images/{GOLDFISH}.jpg\n'
        f'0,{TENCH},"tench, Tinca tinca",images/{TENCH}.jpg\n'
    )
    return root


def test_probelib_data_comes_after_what_is_named(listed, folders, monkeypatch):
    monkeypatch.setenv("PROBELIB_DATA", str(listed.parent))
    found = find_images()
    assert found.source == "ImageNet photographs listed in classes.csv (PROBELIB_DATA/imagenet)"
    assert [path.stem for path in found.paths] == [TENCH, GOLDFISH]
    assert found.labels.tolist() == [0, 1]
    monkeypatch.setenv("PROBELIB_IMAGENET", str(folders))
    assert len(find_images()) == 4
    assert len(find_images(listed)) == 2
    monkeypatch.setenv("PROBELIB_IMAGENET", "")
    assert len(find_images()) == 2


def test_probelib_data_without_imagenet_is_passed_over_but_not_an_empty_imagenet(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PROBELIB_DATA", str(tmp_path))
    assert find_images().stand_in
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(ImageNetUnavailable, match=r"^PROBELIB_DATA/imagenet is .*no images"):
        find_images()


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (f"0,{TENCH}", "0,n00000000", "line 3 .*'n00000000', which is none of"),
        (f"0,{TENCH}", f"7,{TENCH}", "line 3 .*index 7, which is 0"),
        ("images/", "pictures/", "lists 2 files, none of which is there"),
    ],
)
def test_a_wrong_table_is_refused(listed, old, new, match):
    table = listed / "classes.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(ImageNetUnavailable, match=match) as caught:
        find_images(listed)
    one_sentence(caught)


def test_a_file_that_the_table_lists_in_vain_is_skipped(listed):
    (listed / "images" / f"{TENCH}.jpg").unlink()
    decoded = decode(find_images(listed), 7)
    assert decoded.skipped == [(f"{TENCH}.jpg", "No such file or directory")]
    assert decoded.kept.tolist() == [1]
    assert decoded.labels.tolist() == [1]


@needs_shared
def test_the_shared_photographs(monkeypatch):
    monkeypatch.setenv("PROBELIB_DATA", str(SHARED.parent))
    found = find_images()
    assert len(found) == 1000
    assert found.labels.tolist() == list(range(1000))
    assert not found.stand_in
    assert str(SHARED.parent) not in found.source
    some = found.subset([207, 0, 999])
    decoded = decode(some, 224)
    assert decoded.labels.tolist() == [207, 0, 999]
    for path, pixels in zip(some.paths, decoded.images, strict=True):
        with Image.open(path) as image:
            crop = np.asarray(image.crop((16, 16, 240, 240)))
        assert (pixels == crop.transpose(2, 0, 1)).all()


# The stand-ins


def test_stand_ins_are_crops_of_three_photographs():
    found = find_images()
    assert found.stand_in
    assert (found.labels == -1).all()
    assert found.source == (
        "stand-in: crops of china.jpg and flower.jpg of scikit-learn and grace_hopper.jpg of "
        "matplotlib"
    )
    assert Counter(path.name for path in found.paths) == {
        "china.jpg": 18,
        "flower.jpg": 18,
        "grace_hopper.jpg": 18,
    }
    assert len(set(zip(found.paths, found.boxes, strict=True))) == len(found) == 54
    for path, (left, upper, right, lower) in zip(found.paths, found.boxes, strict=True):
        with Image.open(path) as image:
            assert 0 <= left < right <= image.width
            assert 0 <= upper < lower <= image.height
        assert right - left == lower - upper
    again = find_images()
    assert again.boxes == found.boxes
    assert again.fingerprint == found.fingerprint
    decoded = decode(found, 32)
    assert decoded.images.shape == (54, 3, 32, 32)
    assert decoded.images.std(axis=(1, 2, 3)).min() > 1  # no crop is one flat colour
    assert len(np.unique(decoded.images.reshape(54, -1), axis=0)) == 54


def test_a_box_is_cut_out_before_anything_else(tmp_path):
    path = put(tmp_path / "a.png", picture(90, 70))
    files = ImageFiles([path, path], np.array([-1, -1]), "a test", boxes=[(10, 20, 42, 52), None])
    decoded = decode(files, 28, resize=32)
    with Image.open(path) as image:
        crop = np.asarray(image.crop((12, 22, 40, 50)))
    assert (decoded.images[0] == crop.transpose(2, 0, 1)).all()
    outside = ImageFiles([path] * 2, np.array([-1, -1]), "", boxes=[(80, 0, 100, 20), None])
    assert decode(outside, 28).skipped == [
        ("a.png", "the box (80, 0, 100, 20) is not inside its 90 x 70")
    ]


def test_one_sample_photograph_that_is_missing_is_passed_over(monkeypatch, tmp_path):
    real = imagenet._sample_photographs()
    gone = [(tmp_path / path.name, package) for path, package in real]
    monkeypatch.setattr(imagenet, "_sample_photographs", lambda: [gone[0], real[1], gone[2]])
    found = stand_in_images()
    assert len(found) == 18
    assert found.source == "stand-in: crops of flower.jpg of scikit-learn"
    monkeypatch.setattr(imagenet, "_sample_photographs", lambda: gone)
    with pytest.raises(ImageNetUnavailable, match="set PROBELIB_IMAGENET") as caught:
        find_images()
    one_sentence(caught)


# ImageFiles and choose


def test_a_subset_keeps_what_belongs_together():
    found = stand_in_images()
    part = found.subset([20, 3])
    assert part.paths == [found.paths[20], found.paths[3]]
    assert part.boxes == [found.boxes[20], found.boxes[3]]
    assert (part.source, part.stand_in) == (found.source, True)
    mask = np.zeros(54, bool)
    mask[[3, 20]] = True
    assert found.subset(mask).boxes == part.boxes[::-1]
    assert len(found.subset([])) == 0
    assert found.subset(slice(0, 10, 2)).boxes == found.boxes[:10:2]
    with pytest.raises(IndexError):
        found.subset([54])


def test_the_fingerprint_is_of_contents(tmp_path):
    a, b = put(tmp_path / "a.png"), put(tmp_path / "b.png", picture(seed=9))
    copy = tmp_path / "elsewhere.png"
    shutil.copy(a, copy)
    first = files_of(a, b).fingerprint
    assert len(first) == 64
    assert files_of(copy, b).fingerprint == first
    different = [
        files_of(b, a),
        files_of(a, a),
        files_of(a),
        files_of(a, tmp_path / "absent.png"),
        ImageFiles([a, b], np.array([0, 1]), "a test"),
        ImageFiles([a, b], np.array([0, 0]), "a test", boxes=[None, (0, 0, 9, 9)]),
    ]
    assert len({first, *(each.fingerprint for each in different)}) == 7


@pytest.mark.parametrize(
    ("labels", "boxes", "match"),
    [
        ([0], None, "2 entries, labels the shape"),
        ([0, 0], [None], "boxes 1 entries"),
        ([0.0, 1.0], None, "integers"),
        ([0, 1000], None, "0 to 1000"),
        ([-2, 0], None, "-2 to 0"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(labels, boxes, match):
    with pytest.raises(ValueError, match=match):
        ImageFiles([Path("a"), Path("b")], np.array(labels), "a test", boxes=boxes)


def many(n, classes):
    labels = np.arange(n) % classes if classes else np.full(n, -1)
    return ImageFiles([Path(f"{i}.jpg") for i in range(n)], labels, "a test")


def test_a_choice_is_random_ordered_and_repeatable():
    files = many(200, 10)
    chosen = choose(files, 50, seed=3)
    numbers = [int(path.stem) for path in chosen.paths]
    assert len(numbers) == 50
    assert numbers == sorted(set(numbers))
    assert choose(files, 50, seed=3).paths == chosen.paths
    assert choose(files, 50, seed=4).paths != chosen.paths
    assert choose(files, 1000, seed=3).paths == files.paths
    assert (chosen.labels == np.array(numbers) % 10).all()


def test_a_choice_of_so_many_a_class():
    counts = Counter(choose(many(200, 10), 1000, seed=0, per_class=3).labels.tolist())
    assert counts == dict.fromkeys(range(10), 3)
    fewer = choose(many(200, 10), 25, seed=0, per_class=3)
    assert len(fewer) == 25
    assert max(Counter(fewer.labels.tolist()).values()) <= 3
    assert len(choose(many(200, 0), 1000, seed=0, per_class=3)) == 200


@pytest.mark.parametrize(
    ("files", "n", "options", "error", "match"),
    [
        (many(200, 10), 19, {}, NotEnoughImages, "n is 19, too few images"),
        (many(19, 10), 50, {}, NotEnoughImages, "files has 19 images .*too few images"),
        (many(200, 10), 50, {"per_class": 1}, NotEnoughImages, "10 images with per_class=1"),
        (many(200, 10), 50, {"per_class": 0}, ValueError, "per_class"),
        (many(200, 10), 50, {"seed": -1}, ValueError, "seed"),
    ],
)
def test_a_choice_too_small_is_refused(files, n, options, error, match):
    with pytest.raises(error, match=match):
        choose(files, n, **{"seed": 0, **options})


# Pixels


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (120, 90), (33, 33), (20, 15)])
def test_pixels_are_those_of_the_usual_transform(tmp_path, shape, kind):
    """torchvision's Resize and CenterCrop, an implementation of its own around the same Pillow."""
    path = put(tmp_path / f"a.{kind}", picture(*shape))
    usual = transforms.Compose(
        [transforms.Resize(32, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(28)]
    )
    with Image.open(path) as image:
        expected = np.asarray(usual(image)).transpose(2, 0, 1)
    decoded = decode(files_of(path), 28)
    assert decoded.images.dtype == np.uint8
    assert (decoded.images[0] == expected).all()


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same(tmp_path):
    """From four times the wanted size on: at a half, then resampled."""
    path = put(tmp_path / "a.jpg", picture(1001, 777), quality=95)
    usual = transforms.Compose(
        [transforms.Resize(32, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(28)]
    )
    with Image.open(path) as image:
        expected = np.asarray(usual(image)).transpose(2, 0, 1).astype(int)
    # Two ways to average the same pixels: they differ by rounding, a grey level or two.
    assert np.abs(decode(files_of(path), 28).images[0] - expected).max() <= 3


def test_an_image_of_the_wanted_size_is_only_cropped(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    path = put(tmp_path / "a.png", Image.fromarray(noise))
    decoded = decode(files_of(path), 224)
    assert (decoded.images[0] == noise[16:240, 16:240].transpose(2, 0, 1)).all()


@pytest.mark.parametrize("size", [28, 56, 112, 224])
def test_every_size_shows_the_same_part(tmp_path, size):
    """A white frame over the 16 pixels that the crop takes off: none of it may be left."""
    frame = np.full((256, 256, 3), 255, np.uint8)
    frame[16:240, 16:240] = 0
    path = put(tmp_path / "a.png", Image.fromarray(frame))
    pixels = decode(files_of(path), size).images[0]
    assert pixels[:, 3:-3, 3:-3].max() == 0  # bicubic reaches two pixels in
    wider = decode(files_of(path), size, resize=size).images[0]
    assert wider[:, 0].min() == 255


def test_other_modes_become_rgb(tmp_path):
    grey = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))
    rgb = np.stack([grey, grey.T, 255 - grey], -1)
    alpha = np.concatenate([rgb, np.full((32, 32, 1), 77, np.uint8)], -1)
    sixteen = (grey.astype(np.uint16) << 8) + 200
    paths = {
        "grey.png": (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        "rgba.png": (Image.fromarray(alpha), rgb),
        "16.png": (Image.fromarray(sixteen), np.stack([grey] * 3, -1)),
        "bits.png": (
            Image.fromarray(grey > 100),
            np.stack([np.where(grey > 100, 255, 0)] * 3, -1),
        ),
    }
    written = [put(tmp_path / name, image) for name, (image, _) in paths.items()]
    palette = Image.fromarray(grey).convert("P", palette=Image.Palette.ADAPTIVE)
    written.append(put(tmp_path / "palette.png", palette, transparency=bytes([0, 128, 255])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(files_of(*written), 32, resize=32)
    assert decoded.skipped == []
    for pixels, (_, expected) in zip(decoded.images, paths.values(), strict=False):
        assert (pixels == expected.transpose(2, 0, 1)).all()
    assert (decoded.images[4] == np.asarray(palette.convert("RGB")).transpose(2, 0, 1)).all()


def test_cmyk_and_grey_jpegs_become_rgb(tmp_path):
    cmyk = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    grey = Image.new("L", (32, 32), 90)
    paths = [put(tmp_path / "cmyk.jpg", cmyk, quality=95), put(tmp_path / "grey.jpg", grey)]
    red, flat = decode(files_of(*paths), 28, resize=32).images
    assert red[0].min() >= 250
    assert red[1:].max() <= 5
    assert (np.abs(flat.astype(int) - 90) <= 1).all()


def test_the_orientation_that_a_camera_noted_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = put(tmp_path / "plain.jpg", picture(50, 40))
    turned = put(tmp_path / "turned.jpg", picture(50, 40), exif=exif)
    images = decode(files_of(plain, turned), 28).images
    assert (images[0] == images[1]).all()


# Files that cannot be read


@pytest.fixture
def mixed(tmp_path):
    """Seven files: one truncated, one of text, one empty."""
    paths = [put(tmp_path / f"{i}.jpg", picture(300, 200, seed=i), quality=95) for i in range(7)]
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    paths[2].write_text("this is no photograph")
    paths[5].write_bytes(b"")
    return ImageFiles(paths, np.arange(7), "a test")


def check_mixed(decoded, mixed):
    assert decoded.kept.tolist() == [0, 3, 4, 6]
    assert decoded.labels.tolist() == [0, 3, 4, 6]
    assert decoded.kept.dtype == decoded.labels.dtype == np.int64
    assert decoded.images.shape == (4, 3, 28, 28)
    assert len(decoded) == 4
    names, reasons = zip(*decoded.skipped, strict=True)
    assert names == ("1.jpg", "2.jpg", "5.jpg")
    assert "truncated" in reasons[0]
    assert reasons[1:] == ("it is no JPEG or PNG",) * 2
    whole = decode(mixed.subset([0, 3, 4, 6]), 28)
    assert (decoded.images == whole.images).all()


@pytest.mark.parametrize("workers", [1, 3, None])
def test_damaged_files_are_skipped_and_named(mixed, workers):
    check_mixed(decode(mixed, 28, workers=workers), mixed)


def test_the_content_decides_not_the_name(tmp_path):
    """As in ImageNet, a PNG may be called .JPEG; other formats are not opened at all."""
    png = put(tmp_path / "png.JPEG", picture(32, 32), format="PNG")
    gif = put(tmp_path / "gif.jpg", picture(32, 32), format="GIF")
    decoded = decode(files_of(png, gif), 28, resize=32)
    assert decoded.kept.tolist() == [0]
    assert decoded.skipped == [("gif.jpg", "it is no JPEG or PNG")]


def test_truncated_files_are_not_loaded_silently(mixed, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    check_mixed(decode(mixed, 28), mixed)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("limit", [300 * 200 - 1, 300 * 200 // 3])
def test_a_decompression_bomb_is_skipped(tmp_path, monkeypatch, limit):
    """Pillow warns of the first and refuses the second."""
    paths = [put(tmp_path / "bomb.png", picture(300, 200)), put(tmp_path / "a.png")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    ((name, reason),) = decode(files_of(*paths), 28).skipped
    assert name == "bomb.png"
    assert "decompression bomb" in reason


def test_a_thread_of_pixels_is_not_blown_up(tmp_path, monkeypatch):
    paths = [put(tmp_path / "thread.png", picture(9000, 1)), put(tmp_path / "a.png")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert decode(files_of(*paths), 28).skipped == [
        ("thread.png", "9000 x 1 pixels are too elongated")
    ]


def test_more_than_half_unreadable_is_an_error(mixed, tmp_path):
    with pytest.raises(ImageNetUnavailable, match=r"3 of 5 .*first 1\.jpg \(") as caught:
        decode(mixed.subset([0, 1, 2, 5, 6]), 28)
    assert str(tmp_path) not in one_sentence(caught)
    assert len(decode(mixed.subset([0, 1, 2, 6]), 28)) == 2  # half is borne
    with pytest.raises(ImageNetUnavailable, match="1 of 1"):
        decode(mixed.subset([1]), 28, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("size", "options", "match"),
    [
        (0, {}, "size must be 1"),
        (28, {"resize": 27}, "size is 28, larger than resize, which is 27"),
        (28, {"workers": 0}, "workers"),
    ],
)
def test_bad_arguments_are_refused(mixed, size, options, match):
    with pytest.raises(ValueError, match=match):
        decode(mixed, size, **options)


def test_nothing_to_decode_is_refused(mixed):
    with pytest.raises(ValueError, match="files is empty"):
        decode(mixed.subset([]), 28)


# The cache


def entry_of(cache):
    (array,) = cache.glob("*.npy")
    (notes,) = cache.glob("*.json")
    assert array.stem == notes.stem
    assert sorted(cache.iterdir()) == sorted([array, notes])  # nothing is left aside
    return array, notes


def forbid(*_):
    raise AssertionError("decoded again")


def test_the_cache_is_used_again(mixed, tmp_path, monkeypatch):
    cache = tmp_path / "some" / "cache"
    first = decode(mixed, 28, cache=cache)
    check_mixed(first, mixed)
    assert isinstance(first.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        first.images[0] = 0
    entry_of(cache)
    # Other names, the same contents; the names that are reported are today's.
    moved = [shutil.copy(path, tmp_path / f"moved-{path.name}") for path in mixed.paths]
    again = ImageFiles([Path(path) for path in moved], np.arange(7), "a test")
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_pixels", forbid)
        second = decode(again, 28, cache=cache)
    assert (second.images == first.images).all()
    assert second.kept.tolist() == first.kept.tolist()
    assert second.skipped == [(f"moved-{name}", reason) for name, reason in first.skipped]


def test_another_content_or_size_is_another_entry(mixed, tmp_path):
    cache = tmp_path / "cache"
    decode(mixed, 28, cache=cache)
    decode(mixed, 28, resize=30, cache=cache)
    decode(mixed, 14, resize=30, cache=cache)
    put(mixed.paths[0], picture(seed=99))
    decode(mixed.subset(slice(None)), 28, cache=cache)
    assert len(list(cache.glob("*.npy"))) == 4


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3000] ^= 255
    path.write_bytes(content)


DAMAGE = {
    "array shortened": lambda array, notes: os.truncate(array, array.stat().st_size - 10),
    "array empty": lambda array, notes: array.write_bytes(b""),
    "array with another bit": lambda array, notes: flip(array),
    "array gone": lambda array, notes: array.unlink(),
    "notes gone": lambda array, notes: notes.unlink(),
    "notes not JSON": lambda array, notes: notes.write_text("{"),
    "notes of something else": lambda array, notes: notes.write_text("[]"),
    "notes of other images": lambda array, notes: notes.write_text(
        json.dumps({**json.loads(notes.read_text()), "kept": [0, 1]})
    ),
    "another array, with notes": lambda array, notes: (
        np.save(array, np.zeros(3)),
        notes.write_text(
            json.dumps(
                {
                    **json.loads(notes.read_text()),
                    "sha256": hashlib.sha256(array.read_bytes()).hexdigest(),
                }
            )
        ),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(mixed, tmp_path, damage):
    cache = tmp_path / "cache"
    decode(mixed, 28, cache=cache)
    DAMAGE[damage](*entry_of(cache))
    check_mixed(decode(mixed, 28, cache=cache), mixed)
    array, notes = entry_of(cache)
    assert json.loads(notes.read_text())["sha256"] == (
        hashlib.sha256(array.read_bytes()).hexdigest()
    )


def test_an_interrupt_leaves_nothing_behind(mixed, tmp_path, monkeypatch):
    class Interrupt(BaseException):
        pass

    def interrupted(*_):
        raise Interrupt

    monkeypatch.setattr(imagenet, "_pixels", interrupted)
    before = threading.active_count()
    with pytest.raises(Interrupt):
        decode(mixed, 28, workers=1, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert threading.active_count() == before


def test_no_room_is_said_before_the_work(mixed, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(imagenet, "_pixels", forbid)
    with pytest.raises(OSError, match="make room or give another folder"):
        decode(mixed, 28, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
