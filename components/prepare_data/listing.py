"""Rules for names of images, splits and system files, and folder listings by these rules."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError, printable, quantity

_FORMATS = "jpg jpeg jpe jfif png webp bmp gif tif tiff ppm pgm pbm pnm jp2 heic heif avif"
SUFFIXES = frozenset(f".{suffix}" for suffix in _FORMATS.split(" "))
_SUFFIXES = tuple(SUFFIXES)
NOT_READ = frozenset({".heic", ".heif"})  # image suffixes of refused formats
_NOT_CONVERTED = (
    "cr2 cr3 nef nrw arw srf sr2 dng orf rw2 raf pef srw raw 3fr hif jxl psd svg svgz ai eps pdf ico tga exr hdr dcm "
    "mp4 mov avi mkv webm"
)
_OTHER = frozenset(f".{suffix}" for suffix in _NOT_CONVERTED.split(" "))  # pictures and films that are not read
# PNG, JPEG, GIF, BMP, WebP, TIFF, JPEG 2000, AVIF
_IMAGE_START = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\0{4}|RIFF.{4}WEBP|II\*\0|MM\0\*|\0\0\0\x0cjP|.{4}ftypavif", re.DOTALL
)
SPLIT_NAMES = ("train", "val", "test")
# The words of Hugging Face's datasets, and Pascal VOC's trainval.
SPLIT_OF = dict.fromkeys(("train", "training", "trainval"), "train")
SPLIT_OF |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
SPLIT_OF |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
# Names of a folder that is no class where it is the only one: val/images.
NO_CLASS = frozenset(
    [
        "image", "images", "img", "imgs", "photos", "pictures", "data", "files", "all", "unknown", "unlabeled",
        "unlabelled",
    ]
)  # fmt: skip

# System names in lower case: macOS, Windows, ext4, Synology, QNAP, NetApp, Python, FrontPage, ACDSee, Nextcloud.
_SYSTEM = frozenset(
    [
        "__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder", "$recycle.bin", "$extend",
        "$winreagent", "$sysreset", "recycler", "system volume information", "lost+found", "@eadir", "@tmp", "@recycle",
        "@recycle.bin", "@recently-snapshot", "@snapshot", "@sharesnap", "@__thumb", "@sharebin", "@__qini",
        "#recycle", "#snapshot", "#trash", "~snapshot", "__pycache__", "node_modules", "_vti_cnf", "_vti_pvt",
        "_gsdata_", "[originals]", "files_trashbin", "files_versions", "@transcode", "backups.backupdb",
        "$windows.~bt", "$windows.~ws", "windows.old", "thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini",
        "zbthumbnail.info", "icon\r",
    ]
)  # fmt: skip
_SYSTEM_FORM = re.compile(
    r"\.|found\.\d{3}$|@syno|synophoto_|synoindex_|albumart(small|_\{.*\}_(large|small))\.jpg$|"
    r".*\.(lrdata|lrcat|photoslibrary|aplibrary)$",
    re.IGNORECASE,
)
_THUMBNAILS = re.compile(
    r"(_+(thumb|thumbnail)s?|(thumb|thumbnail)s)_*", re.IGNORECASE
)  # ignored below a class; may itself be a class
# Of a.jpg: a-150x150.jpg, a_thumb.jpg; WordPress's a-scaled.jpg, a-e1612345678901.jpg; a@2x.jpg; thumb_a.jpg, tn_a.jpg
_SMALLER = (
    re.compile(
        r"(.+?)(-\d+x\d+|[-_.](thumb(nail)?|small|medium|sized|preview)|-(scaled|rotated|e\d{13})|@[1-4]x)",
        re.IGNORECASE,
    ),
    re.compile(r"(?:thumb(?:nail)?|tn)[-_.](.+)", re.IGNORECASE),
)
_ELSEWHERE = re.compile(r"\..+\.icloud", re.IGNORECASE)  # what macOS leaves of a file that is in iCloud alone
_LISTED = 3
# Soft hyphens, joiners, marks of direction, selectors of variants, a BOM
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_WIDE = re.compile("[\ufb00-\ufb06\uff01-\uffef]+")  # ligatures; forms of East Asian width


def is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)  # not splitext, for which "..png" and ".png" have no suffix


def is_system(name: str) -> bool:
    """Whether this is the name of a hidden file, or of a file or folder of a system or tool."""
    return name.lower() in _SYSTEM or _SYSTEM_FORM.match(name) is not None


def alike(text: str) -> str:
    """A normal form of a name: equal for names that differ only in Unicode form, width, case, spacing or the unseen."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    plain = _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]), plain)
    return unicodedata.normalize("NFC", " ".join(plain.split()).casefold())


class LeftOut:
    """Counts of images that are found but not used, with a sentence about each kind."""

    def __init__(self) -> None:
        self.system: Counter[str] = Counter()  # system name -> number of images
        self.smaller: list[str] = []  # paths of smaller copies
        self.loose: dict[str, list[str]] = {}  # folder -> names of images beside its class folders
        self.unnamed: dict[str, list[str]] = {}  # folder -> names of images that a table does not name
        self.links: list[str] = []  # folders
        self.elsewhere: list[str] = []  # names of images that are in iCloud alone
        self.formats: Counter[str] = Counter()  # suffixes of pictures in formats that are not read
        self.unsuffixed: list[str] = []  # paths of images that have no image's name

    def add_others(self, files: Sequence[Path], root: Path) -> None:
        """Count what is a picture among the files of a class that have no image's name."""
        for file in files:
            if file.suffix.lower() in _OTHER:
                self.formats[file.suffix.lower()] += 1
            elif _begins_as_image(file):
                self.unsuffixed.append(_below(file, root))

    def add_loose(self, folder: Path, root: Path) -> None:
        """Count the images directly in a folder, beside its class folders."""
        if names := loose_images(folder):
            self.loose[_below(folder, root)] = names

    def add_unnamed(self, folder: Path, root: Path, named: set[str]) -> None:
        """Count the images directly in a folder of a table's images that the table does not name."""
        names = [name for name in loose_images(folder) if name not in named] if folder.is_dir() else []
        if names:
            self.unnamed[_below(folder, root)] = names

    def notes(self) -> list[str]:
        notes = []
        if self.system:
            counted = _counted(self.system)
            notes.append(f"{quantity(self.system.total(), 'image')} in names of a system or tool left out: {counted}")
        if self.smaller:
            notes.append(
                f"{quantity(len(self.smaller), 'image')} left out, smaller copies by their names: "
                f"{some(sorted(self.smaller))}"
            )
        notes += self.others()
        for folder, names in self.loose.items():
            notes.append(
                f"{folder}: {quantity(len(names), 'image')} in no class folder, so without a label, left out: "
                f"{some(names)}"
            )
        for folder, names in self.unnamed.items():
            notes.append(
                f"{folder}: {quantity(len(names), 'image')} that the CSV does not name left out: {some(names)}"
            )
        if self.elsewhere:
            shown = some(sorted(self.elsewhere))
            notes.append(
                f"{quantity(len(self.elsewhere), 'image')} in iCloud alone, left out: {shown}; download them "
                "in the Finder"
            )
        if self.links:
            notes.append(f"linked folders are not followed: {some(sorted(self.links))}")
        return notes

    def others(self) -> list[str]:
        notes = []
        if self.formats:
            counted = _counted(self.formats)
            notes.append(f"files of formats that are not read left out: {counted}; convert them to JPEG or PNG")
        if self.unsuffixed:
            notes.append(
                f"{quantity(len(self.unsuffixed), 'image')} by content, not by name, left out: "
                f"{some(self.unsuffixed)}; let their names end in .jpg or .png"
            )
        return notes


def folders_in(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The subfolders of a folder, sorted, without system folders."""
    try:
        found = sorted(item for item in folder.iterdir() if item.is_dir())
        for item in found:
            if left_out is not None and is_system(item.name):
                _count(item, item.name, left_out)
    except OSError as error:
        raise unreadable(error) from None
    return [item for item in found if not is_system(item.name)]


def loose_images(folder: Path) -> list[str]:
    """Names of the images directly in a folder, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                e.name
                for e in entries
                if is_image(e.name) and not is_system(e.name) and os.path.isfile(e.path)  # noqa: PTH113
            )
    except OSError as error:
        raise unreadable(error) from None


def files_below(folder: Path | str, left_out: LeftOut | None = None) -> Iterator[os.DirEntry[str]]:
    """The files below a folder, without system files. Linked folders are not followed, since links may form a cycle."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    stems = [os.path.splitext(entry.name)[0] for entry in entries]  # noqa: PTH122
    names = set(stems)
    for entry, stem in zip(entries, stems, strict=True):
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_system(entry.name) or (is_folder and _THUMBNAILS.fullmatch(entry.name)):
            if left_out is not None:
                _count(entry, entry.name, left_out)
        elif is_folder:
            yield from files_below(entry.path, left_out)
        elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112
            if left_out is not None:
                left_out.links.append(entry.path)
        elif is_image(entry.name) and _is_smaller(stem, names):
            if left_out is not None:
                left_out.smaller.append(entry.name)
        else:
            yield entry


def _is_smaller(stem: str, stems: set[str]) -> bool:
    """Whether this is the name, without suffix, of a smaller copy of an image in the same folder."""
    return any((found := form.fullmatch(stem)) is not None and found[1] in stems for form in _SMALLER)


def _count(item: Path | os.DirEntry[str], name: str, left_out: LeftOut) -> None:
    """Count the images in a system file or folder, which may be unreadable."""
    if isinstance(item, os.DirEntry) and not item.is_dir(follow_symlinks=False):
        if _ELSEWHERE.fullmatch(name) and is_image(name[: -len(".icloud")]):
            left_out.elsewhere.append(name[1 : -len(".icloud")])
        left_out.system.update([name[:2] + "…" if name.startswith("._") else name] if is_image(name) else [])
        return
    for _, folders, files in os.walk(item):  # ignores errors
        folders.sort()
        found = sum(map(is_image, files))
        if found:
            left_out.system[name] += found


def _begins_as_image(file: Path) -> bool:
    try:
        number = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is not waited for
        try:
            return _IMAGE_START.match(os.read(number, 16)) is not None
        finally:
            os.close(number)
    except OSError:
        return False


def unreadable(error: OSError) -> AutoFormerError:
    return AutoFormerError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions or move it")


def _below(folder: Path, root: Path) -> str:
    return "." if folder == root else printable(folder.relative_to(root).as_posix())


def _counted(counts: Counter[str]) -> str:
    return some([f"{name} {count:,}" for name, count in counts.most_common()])


def some(names: Sequence[str], most: int = _LISTED) -> str:
    """The first names of a list, and whether there are more."""
    return ", ".join(map(printable, names[:most])) + (", …" if len(names) > most else "")
