"""The image sets that are known: files, digests, classes, licences. The one place for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wellposed.data.digests import DataFile
from wellposed.data.layouts import grey_pack, idx_files, jpeg_pack, tile_sheets
from wellposed.data.records import Normalisation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wellposed.data.layouts import Layout


@dataclass(frozen=True)
class Description:
    """What is known of an image set before it is read.

    Args:
        name: Name of the set.
        subfolders: Folders of the set inside a data folder, the usual one first.
        files: File of each role of the layout.
        layout: How the files make up the set.
        classes: Name of each class, in the order of the labels.
        normalisation: Usual scaling of the pixels.
        origin: Where the set comes from, and under which terms.
    """

    name: str
    subfolders: tuple[str, ...]
    files: Mapping[str, DataFile]
    layout: Layout
    classes: tuple[str, ...]
    normalisation: Normalisation
    origin: str


def _idx(stem: str, rank: int, sha256: str, raw: str) -> DataFile:
    names = (f"{stem}-idx{rank}-ubyte", f"{stem}.idx{rank}-ubyte")
    packed = tuple(f"{name}.gz" for name in names)
    return DataFile((packed[0], names[0], packed[1], names[1]), sha256, raw)


def _file(name: str, sha256: str) -> DataFile:
    return DataFile((name,), sha256)


_DIGITS = tuple("0123456789")
_CLOTHES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_THINGS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_SIGNS = (
    *(f"speed limit {limit} km/h" for limit in (20, 30, 50, 60, 70, 80)),
    "end of speed limit 80 km/h",
    *(f"speed limit {limit} km/h" for limit in (100, 120)),
    *("no overtaking", "no overtaking by lorries", "right of way at the next junction"),
    *("priority road", "give way", "stop", "no vehicles", "no lorries", "no entry"),
    *("general caution", "dangerous bend to the left", "dangerous bend to the right"),
    *("double bend", "bumpy road", "slippery road", "road narrows on the right", "road works"),
    *("traffic signals", "pedestrians", "children crossing", "bicycles crossing"),
    *("ice or snow", "wild animals crossing", "end of all limits"),
    *("turn right ahead", "turn left ahead", "ahead only", "ahead or right", "ahead or left"),
    *("keep right", "keep left", "roundabout"),
    *("end of no overtaking", "end of no overtaking by lorries"),
)

_MNIST = Normalisation((0.1307,), (0.3081,))
_FASHION = Normalisation((0.2860,), (0.3530,))
# Those of the original 50,000 images for both forms, so that a network that was trained on the
# lossy one can be evaluated on the exact one.
_CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# Measured on the 13,069 training frames.
_GTSRB = Normalisation((0.3404, 0.3124, 0.3221), (0.2764, 0.2660, 0.2728))

_FROM_MNIST = "MNIST: LeCun, Cortes and Burges; usually cited as CC BY-SA 3.0."
_FROM_FASHION = "Fashion-MNIST: Xiao, Rasul and Vollgraf, 2017; MIT licence."
_FROM_CIFAR = "CIFAR-10: Krizhevsky, 2009; for research, not shipped with the library."
_FROM_GTSRB = "GTSRB: Stallkamp et al., 2012; for research, not shipped with the library."

_ALL = (
    Description(
        name="mnist",
        subfolders=("mnist", "MNIST/raw"),
        files={
            "train_image": _idx(
                "train-images",
                3,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            "train_label": _idx(
                "train-labels",
                1,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            "test_image": _idx(
                "t10k-images",
                3,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            "test_label": _idx(
                "t10k-labels",
                1,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        },
        layout=idx_files,
        classes=_DIGITS,
        normalisation=_MNIST,
        origin=_FROM_MNIST,
    ),
    Description(
        name="fashion_mnist",
        subfolders=("fashion_mnist", "FashionMNIST/raw"),
        files={
            "train_image": _idx(
                "train-images",
                3,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            "train_label": _idx(
                "train-labels",
                1,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            "test_image": _idx(
                "t10k-images",
                3,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            "test_label": _idx(
                "t10k-labels",
                1,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        },
        layout=idx_files,
        classes=_CLOTHES,
        normalisation=_FASHION,
        origin=_FROM_FASHION,
    ),
    Description(
        name="cifar10",
        subfolders=("cifar10",),
        files={
            "pack": _file(
                "cifar10_jpeg75.npz",
                "dc34c88fd7802be717d7dde7001c66952f26af1cad79c5c4f3c6e92fbd71b22e",
            ),
        },
        layout=jpeg_pack,
        classes=_THINGS,
        normalisation=_CIFAR,
        origin=_FROM_CIFAR,
    ),
    Description(
        name="cifar10_exact",
        subfolders=("cifar10",),
        files={
            "labels": _file(
                "cifar10_exact_index.npz",
                "e43bae2952e75ec2c72696896f008c698590c99940a232f0ac63746bab94d198",
            ),
            "train": _file(
                "cifar10_exact_train.webp",
                "32aa62e27c1047e663c6ae601638b13b9b903a6b46672b4b2503bdc57cdc9f6a",
            ),
            "test": _file(
                "cifar10_exact_test.webp",
                "4484d58991189523e09380d2abcd72d8c77b1e2c0ef40443686c547e357db2b2",
            ),
        },
        layout=tile_sheets,
        classes=_THINGS,
        normalisation=_CIFAR,
        origin=_FROM_CIFAR,
    ),
    Description(
        name="gtsrb32",
        subfolders=("gtsrb32",),
        files={
            "labels": _file(
                "gtsrb32_labels.npz",
                "6a9f32bdb3ee1c4536969b3f535430975051bc13fbf311118778752c36d851c0",
            ),
            "train": _file(
                "gtsrb32_train_every3rd.webp",
                "55763537f7132600791acbe7f55d22e3668dbb40112d0a34840e62b2c85ac0a4",
            ),
            "test": _file(
                "gtsrb32_test.webp",
                "cd8cb0bf0b6c7d6330d5fc7381845ac362b0d5ea6f97e2b5468c4881c0eb198d",
            ),
        },
        layout=tile_sheets,
        classes=_SIGNS,
        normalisation=_GTSRB,
        origin=_FROM_GTSRB,
    ),
    Description(
        name="mnist_mini",
        subfolders=("mnist",),
        files={
            "pack": _file(
                "mnist_mini.npz",
                "a9fbd6e1af91f21f44da3e704b014ceed40f3fc1aac5b85901372860c59e6e2a",
            ),
        },
        layout=grey_pack,
        classes=_DIGITS,
        normalisation=_MNIST,
        origin=_FROM_MNIST,
    ),
    Description(
        name="fashion_mnist_mini",
        subfolders=("fashion_mnist",),
        files={
            "pack": _file(
                "fashion_mnist_mini.npz",
                "8da5e3ea74478c3fb5c43e18881d8c33e0c690c6c0b5d51f3ad7a31ce661ce2f",
            ),
        },
        layout=grey_pack,
        classes=_CLOTHES,
        normalisation=_FASHION,
        origin=_FROM_FASHION,
    ),
)

IMAGE_SETS: Mapping[str, Description] = {description.name: description for description in _ALL}
