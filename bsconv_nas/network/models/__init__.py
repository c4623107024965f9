"""Base networks that torchvision does not have; a space file names them by their factory."""

from bsconv_nas.network.models.cifar_resnet import cifar_resnet

__all__ = ["cifar_resnet"]
