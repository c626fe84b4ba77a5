"""Data sets that anyone may download, by torchvision, which knows their sums."""

from torchvision import datasets
from torchvision.datasets.utils import download_url

from classification.config import DataSettings


def download_cifar(settings: DataSettings) -> None:
    """CIFAR-10 or -100: 0.2 GB.

    Raises:
        OSError, RuntimeError: the download failed, or its sum is wrong.
    """
    (datasets.CIFAR10 if settings.name == "cifar10" else datasets.CIFAR100)(
        str(settings.root), download=True
    )


def download_fashion_mnist(settings: DataSettings) -> None:
    """The four files of Fashion-MNIST: 0.03 GB. Raises as `download_cifar`."""
    source = datasets.FashionMNIST
    for name, md5 in source.resources:
        download_url(f"{source.mirrors[0]}{name}", str(settings.root), name, md5)


def download_places365(settings: DataSettings) -> None:
    """Lists and images of Places365. Raises as `download_cifar`.

    Images of 256 pixels unless `settings.size` asks for the large ones: 24 instead of 105 GB for the
    standard edition; archives stay beside what was unpacked.
    """
    for split in (f"train-{settings.edition}", "val"):
        datasets.Places365(
            str(settings.root), split=split, small=settings.size != "large", download=True
        )
