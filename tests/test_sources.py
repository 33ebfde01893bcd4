"""What is found in a user's folder or CSV: by name alone, so that the files of these tests need be no images."""

import os
from pathlib import Path

import pytest

from autoformer.errors import AutoFormerError
from components.prepare_data.sources import Source, discover


def lay(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return root


def found(source: Source) -> list[tuple[str, str, str]]:
    return [(source.name_of(image), image.label, image.split) for image in source.images]


def test_class_folders_with_folders_in_them(tmp_path: Path) -> None:
    """Below a class folder everything is of the class; hidden files count as nothing, others as ignored."""
    lay(
        tmp_path, "cat/b.JPG", "cat/a.jpeg", "cat/2024/may/c.PnG", "dog/x.webp", "dog/y.tif", "dog/notes.txt",
        "dog/.DS_Store", "dog/Thumbs.db", ".git/z.png", "__MACOSX/cat/._a.jpg", "cat/.thumbs/a.png", "readme.md",
    )  # fmt: skip
    source = discover(tmp_path)
    assert found(source) == [
        ("cat/2024/may/c.PnG", "cat", ""), ("cat/a.jpeg", "cat", ""), ("cat/b.JPG", "cat", ""),
        ("dog/x.webp", "dog", ""), ("dog/y.tif", "dog", ""),
    ]  # fmt: skip
    assert (source.classes, source.layout, source.ignored) == (("cat", "dog"), "class folders", 1)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val", "test"), ("train", "val", "test")),
        (("Training", "Validation"), ("train", "val")),
        (("train", "TEST"), ("train", "test")),
        (("train", "dev"), ("train", "val")),
    ],
)
def test_split_folders(folders: tuple[str, ...], splits: tuple[str, ...], tmp_path: Path) -> None:
    for folder in folders:
        lay(tmp_path / folder, "cat/1.png", "dog/1.png")
    source = discover(tmp_path)
    assert sorted(found(source)) == sorted(
        (f"{folder}/{label}/1.png", label, split)
        for folder, split in zip(folders, splits, strict=True)
        for label in ("cat", "dog")
    )
    assert source.layout == f"{', '.join(folders)} folders of class folders"


@pytest.mark.parametrize(
    "files",
    [
        ("train/1.png", "bus/1.png", "car/1.png"),  # vehicles
        ("val/1.png", "test/1.png"),
    ],
)
def test_folders_that_only_look_like_splits_are_classes(files: tuple[str, ...], tmp_path: Path) -> None:
    source = discover(lay(tmp_path, *files))
    assert source.layout == "class folders" and {image.split for image in source.images} == {""}
    assert source.classes == tuple(sorted(file.partition("/")[0] for file in files))


def test_a_train_folder_alone_holds_the_classes(tmp_path: Path) -> None:
    source = discover(lay(tmp_path, "train/cat/1.png", "train/dog/1.png"))
    assert source.classes == ("cat", "dog") and {image.split for image in source.images} == {"train"}


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (("train", "test", "rest"), "rest: neither train, val nor test, beside a folder 'train'"),
        (("train", "val", "valid"), "two folders mean the split 'val'"),
    ],
)
def test_a_mixture_of_splits_and_others_is_refused(folders: tuple[str, ...], says: str, tmp_path: Path) -> None:
    """Else a network would learn to tell splits apart, and nobody would be told."""
    files = [f"{folder}/{label}/1.png" for folder in folders for label in ("cat", "dog")]
    with pytest.raises(AutoFormerError, match=says):
        discover(lay(tmp_path, *files))


def test_links(tmp_path: Path) -> None:
    """A class folder may be a link, as may an image; linked folders below are not followed: no link makes a circle."""
    lay(tmp_path / "elsewhere", "d/1.png", "2.png")
    root = lay(tmp_path / "photos", "cat/1.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "d")
    (root / "cat" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "cat" / "circle").symlink_to(root)
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    assert found(discover(root)) == [
        ("cat/1.png", "cat", ""), ("cat/2.png", "cat", ""), ("cat/self.png", "cat", ""), ("dog/1.png", "dog", ""),
    ]  # fmt: skip


def test_names_of_any_script_and_with_spaces_and_newlines(tmp_path: Path) -> None:
    names = ("Bernese mountain dog", "Käse & Brot", "猫", "two\nlines", '100%,"quoted"\'')
    source = discover(lay(tmp_path, *(f"{name}/an image.png" for name in names)))
    assert source.classes == tuple(sorted(names)) and len(source.images) == 5


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("path,label\na.png,cat\nsub/b.png,dog\n", [("a.png", "cat", ""), ("sub/b.png", "dog", "")]),
        # a byte order mark, Windows' line ends, other names of the columns in another order, a column to ignore
        (
            "\ufeffClass,note,File_Name\r\ncat,x,a.png\r\ndog,y,sub/b.png\r\n",
            [("a.png", "cat", ""), ("sub/b.png", "dog", "")],
        ),
        (
            "image,category,split\na.png,cat,train\nsub/b.png,dog,Training\nc.png,cat,valid\nd.png,dog,TEST\n",
            [("a.png", "cat", "train"), ("c.png", "cat", "val"), ("d.png", "dog", "test"),
             ("sub/b.png", "dog", "train")],
        ),
        (
            'path,label\n"a, b.png","two\nlines"\n./sub/../a.png, cat \n',
            [("a, b.png", "two\nlines", ""), ("a.png", "cat", "")],
        ),
        # not looked for, so not missed: packing names it with its reason
        ("path,label\ngone.png,cat\nno-suffix,dog\n", [("gone.png", "cat", ""), ("no-suffix", "dog", "")]),
    ],
)  # fmt: skip
def test_csv(text: str, rows: list[tuple[str, str, str]], tmp_path: Path) -> None:
    file = lay(tmp_path, "a.png", "sub/b.png", "c.png", "d.png") / "labels.CSV"
    file.write_bytes(text.encode())
    source = discover(file)
    assert found(source) == sorted(rows) and source.root == tmp_path.resolve()


def test_a_csv_may_name_a_file_of_its_folder_absolutely(tmp_path: Path) -> None:
    file = lay(tmp_path, "a.png", "b.png") / "labels.csv"
    file.write_text(f"path,label\n{tmp_path / 'a.png'},cat\nb.png,dog\n")
    assert [name for name, _, _ in found(discover(file))] == ["a.png", "b.png"]


CSV = "labels.csv"
REFUSED: list[tuple[str, dict[str, str], str, list[str]]] = [
    ("nothing there", {}, "gone", ["gone: no such folder or CSV file"]),
    ("a file", {"a.txt": ""}, "a.txt", ["neither a folder nor a .csv file"]),
    ("an empty folder", {"sub/.keep": ""}, "sub", ["no class folders with images"]),
    ("images without classes", {"1.png": "", "2.JPG": ""}, ".", ["2 images lie in it directly", "a folder for each"]),
    ("an empty class folder", {"a/1.png": "", "b/notes.txt": ""}, ".", ["/b: a class folder without images", "remove"]),
    ("one class", {"cat/1.png": ""}, ".", ["one class only, 'cat'", "two or more"]),
    (
        "a class that is never trained",
        {"train/a/1.png": "", "train/b/1.png": "", "val/c/1.png": ""},
        ".",
        ["the class 'c' is in val but not in train"],
    ),
    ("an empty CSV", {CSV: ""}, CSV, ["a column 'path' and a column 'label'", "it has: nothing"]),
    ("a header alone", {CSV: "path,label\n"}, CSV, ["names no images"]),
    ("other columns", {CSV: "name,kind\n"}, CSV, ["it has: name, kind"]),
    ("no path", {CSV: "path,label\n,cat\n"}, CSV, ["labels.csv, line 2: no path"]),
    ("a short row", {CSV: "path,label\na.png,x\nb.png\n"}, CSV, ["labels.csv, line 3: no label"]),
    ("outside by dots", {CSV: "path,label\n../a.png,cat\n"}, CSV, ["line 2: ../a.png lies outside", "move the images"]),
    ("outside by dots within", {CSV: "path,label\nx/../../a.png,cat\n"}, CSV, ["lies outside the folder"]),
    ("outside, absolute", {CSV: "path,label\n/etc/passwd,cat\n"}, CSV, ["/etc/passwd lies outside the folder"]),
    ("a null byte", {CSV: "path,label\na\0.png,cat\n"}, CSV, ["labels.csv"]),
    ("an image twice", {CSV: "path,label\na.png,cat\n./a.png,dog\n"}, CSV, ["names a.png twice", "one label"]),
    ("another split", {CSV: "path,label,split\na.png,cat,holdout\n"}, CSV, ["line 2: split 'holdout' is none of"]),
    ("half a split", {CSV: "path,label,split\na,x,train\nb,y,\n"}, CSV, ["have a split and some have none"]),
    ("never train", {CSV: "path,label,split\na,x,test\nb,y,test\n"}, CSV, ["'x' is in test but not in train"]),
    ("one class in a CSV", {CSV: "path,label\na,x\nb,x\n"}, CSV, ["one class only, 'x'"]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "given", "parts"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_refused(files: dict[str, str], given: str, parts: list[str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(AutoFormerError) as error:
        discover(tmp_path / given)
    assert all(part in str(error.value) for part in parts), error.value


def test_a_csv_may_not_name_a_link_that_leads_outside(tmp_path: Path) -> None:
    root = lay(tmp_path / "photos", "b.png")
    lay(tmp_path, "secret.png")
    (root / "a.png").symlink_to(tmp_path / "secret.png")
    (root / "labels.csv").write_text("path,label\nb.png,cat\na.png,dog\n")
    with pytest.raises(AutoFormerError, match=r"line 3: a\.png lies outside the folder of the CSV"):
        discover(root / "labels.csv")


@pytest.mark.parametrize("content", [b"path,label\n\xff\xfe,cat\n", "path,label\n".encode("utf-16-le")])
def test_a_csv_that_is_not_utf8_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CSV).write_bytes(content)
    with pytest.raises(AutoFormerError, match="not readable as CSV in UTF-8"):
        discover(tmp_path / CSV)


def test_a_field_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / CSV).write_text('path,label\n"' + "a" * 200_000)
    with pytest.raises(AutoFormerError, match="not readable as CSV"):
        discover(tmp_path / CSV)


@pytest.mark.parametrize("name", [b"cat/\xff.png", b"\xff/1.png"])
def test_a_name_that_is_not_utf8_is_refused(name: bytes, tmp_path: Path) -> None:
    lay(tmp_path, "cat/1.png", "dog/1.png")
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(AutoFormerError, match=r"\\udcff.* not in UTF-8; rename it"):
        discover(tmp_path)


def test_a_csv_may_name_a_link_to_itself(tmp_path: Path) -> None:
    """No file there: packing says so of this one image."""
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    (tmp_path / CSV).write_text("path,label\na.png,cat\nb.png,dog\n")
    assert len(discover(tmp_path / CSV).images) == 2


def test_a_csv_whose_folders_are_links_in_a_circle_or_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "circle").symlink_to(root / "circle")
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "x.png").touch()
    for path in ("out/x.png", "../x.png", "/etc/passwd"):
        (root / "labels.csv").write_text(f"path,label\na.png,a\n{path},b\n")
        with pytest.raises(AutoFormerError, match=r"line 3.* lies outside the folder"):
            discover(root / "labels.csv")
    (root / "labels.csv").write_text(f"path,label\na.png,a\ncircle/x.png,b\n{'y' * 300}.png,b\n")
    assert len(discover(root / "labels.csv").images) == 3  # packing reports those that cannot be read
