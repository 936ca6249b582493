"""What is known of the published data sets: where they come from, and the checksum of every file. Facts only.

A set is made of parts, files whose bytes are known; a download holds one part (`.gz`) or several (`.tar.gz`). It is the
parts that are verified, whatever they came packed in. Checksums: MNIST and CIFAR-10, the published MD5 of each download
and the SHA-256 of its contents; Fashion-MNIST, the MD5s its authors and other loaders publish; CIFAR-100,
the SHA-256 that torchvision-ruby publishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dpap.data.spec import DataSpec

CIFAR_CREDIT = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; no licence stated"


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a data set as it is unpacked."""

    name: str
    size: int
    checksum: str
    """The algorithm and the digest: `sha256:...` or `md5:...`."""
    samples: int


@dataclass(frozen=True, slots=True)
class Download:
    """A file at an official address, and what is in it."""

    name: str
    url: str
    size: int
    checksum: str
    parts: tuple[Part, ...]

    @property
    def packed_names(self) -> tuple[str, ...]:
        """Names under which the download is looked for: packed again with another program, it is as good."""
        if self.name.endswith(".tar.gz"):
            stem = self.name.removesuffix(".tar.gz")
            return (self.name, f"{stem}.tgz", f"{stem}.tar.xz", f"{stem}.tar")
        return (self.name, self.name.replace("-idx", ".idx"))

    def unpacked_names(self, part: Part) -> tuple[str, ...]:
        """Names under which a part is looked for."""
        return (part.name, part.name.replace("-idx", ".idx")) if len(self.parts) == 1 else (part.name,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A published data set.

    Attributes:
        spec: Name, shape, classes, credit, normalisation.
        folders: Names of its folder inside the data folder; a download goes to the first.
        inside: The folder that its archive unpacks to; empty when its files are packed one by one.
        downloads: All of its files.
        held_out: Share of the official training set that is the validation split.
        unread: Other published forms, which are recognised only to say that they are not read.
    """

    spec: DataSpec
    folders: tuple[str, ...]
    inside: str = ""
    downloads: tuple[Download, ...]
    held_out: float
    unread: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def size(self) -> int:
        """Bytes to download, altogether."""
        return sum(download.size for download in self.downloads)


def _idx(url: str, kind: str, split: str, size: int, md5: str, checksum: str) -> Download:
    """One of the four files of a set in MNIST's format."""
    samples = 60_000 if split == "train" else 10_000
    name = f"{split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    unpacked = 16 + samples * 28 * 28 if kind == "images" else 8 + samples
    return Download(f"{name}.gz", f"{url}{name}.gz", size, f"md5:{md5}", (Part(name, unpacked, checksum, samples),))


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"

_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

MNIST = Source(
    spec=DataSpec(
        name="mnist",
        shape=(1, 28, 28),
        classes=tuple("0123456789"),
        credit="MNIST, Y. LeCun, C. Cortes, C. J. C. Burges; commonly stated as CC BY-SA 3.0",
        mean=(0.1307,),
        std=(0.3081,),
        unmirrored="a mirrored digit is no digit",
    ),
    folders=("mnist", "MNIST/raw", "MNIST"),
    downloads=(
        _idx(
            _MNIST, "images", "train", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        _idx(
            _MNIST, "labels", "train", 28_881, "d53e105ee54ea40749a09fcbcd1e9432",
            "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        _idx(
            _MNIST, "images", "t10k", 1_648_877, "9fb629c4189551a2d022fa330f9573f3",
            "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        _idx(
            _MNIST, "labels", "t10k", 4_542, "ec29112dd5afa0611ce80d1b7f02629c",
            "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    held_out=1 / 12,
)  # fmt: skip

FASHION_MNIST = Source(
    spec=DataSpec(
        name="fashion-mnist",
        shape=(1, 28, 28),
        classes=(
            "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
        ),
        credit="Fashion-MNIST, H. Xiao, K. Rasul, R. Vollgraf (Zalando), 2017, MIT",
        mean=(0.2860,),
        std=(0.3530,),
    ),
    folders=("fashion-mnist", "FashionMNIST/raw", "FashionMNIST", "fashion_mnist", "fashion"),
    downloads=(
        _idx(
            _FASHION, "images", "train", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
        ),
        _idx(
            _FASHION, "labels", "train", 29_515, "25c81989df183df01b3e8a0aad5dffbe",
            "md5:9018921c3c673c538a1fc5bad174d6f9",
        ),
        _idx(
            _FASHION, "images", "t10k", 4_422_102, "bef4ecab320f06d8554ea6380940ec79",
            "md5:8181f5470baa50b63fa0f6fddb340f0a",
        ),
        _idx(
            _FASHION, "labels", "t10k", 5_148, "bb300cfdad3c16e7a12a480ee83cd310",
            "md5:15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
    held_out=1 / 12,
)  # fmt: skip

CIFAR10 = Source(
    spec=DataSpec(
        name="cifar10",
        shape=(3, 32, 32),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        credit=CIFAR_CREDIT,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    folders=("cifar10", "CIFAR10", "cifar-10"),
    inside="cifar-10-batches-bin",
    downloads=(
        Download(
            "cifar-10-binary.tar.gz",
            f"{_CIFAR}cifar-10-binary.tar.gz",
            170_052_171,
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            tuple(
                Part(f"{name}.bin", 10_000 * 3073, f"sha256:{digest}", 10_000)
                for name, digest in (
                    ("data_batch_1", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
                    ("data_batch_2", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
                    ("data_batch_3", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
                    ("data_batch_4", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
                    ("data_batch_5", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
                    ("test_batch", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
                )
            ),
        ),
    ),
    held_out=1 / 10,
    unread=("cifar-10-python.tar.gz", "cifar-10-batches-py"),
)

CIFAR100 = Source(
    spec=DataSpec(
        name="cifar100",
        shape=(3, 32, 32),
        classes=tuple(_CIFAR100_CLASSES.split()),
        credit=CIFAR_CREDIT,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    folders=("cifar100", "CIFAR100", "cifar-100"),
    inside="cifar-100-binary",
    downloads=(
        Download(
            "cifar-100-binary.tar.gz",
            f"{_CIFAR}cifar-100-binary.tar.gz",
            168_513_733,
            "md5:03b5dce01913d631647c71ecec9e9cb8",
            (
                Part(
                    "train.bin", 50_000 * 3074,
                    "sha256:f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29", 50_000,
                ),
                Part(
                    "test.bin", 10_000 * 3074,
                    "sha256:d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a", 10_000,
                ),
            ),
        ),
    ),
    held_out=1 / 10,
    unread=("cifar-100-python.tar.gz", "cifar-100-python"),
)  # fmt: skip

SOURCES: Mapping[str, Source] = MappingProxyType(
    {source.name: source for source in (MNIST, FASHION_MNIST, CIFAR10, CIFAR100)}
)
