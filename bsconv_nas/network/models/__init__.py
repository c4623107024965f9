"""Base networks of the BSConv paper (arXiv 2003.13549) and their like; a space file names them by their factory."""

from bsconv_nas.network.models.cifar_resnet import cifar_resnet
from bsconv_nas.network.models.efficientnet import efficientnet_b0
from bsconv_nas.network.models.mobilenet_v1 import mobilenet_v1
from bsconv_nas.network.models.mobilenet_v2 import mobilenet_v2
from bsconv_nas.network.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from bsconv_nas.network.models.preact_resnet import cifar_preact_resnet, wrn
from bsconv_nas.network.models.resnet import resnet

__all__ = [
    "cifar_preact_resnet",
    "cifar_resnet",
    "efficientnet_b0",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet",
    "wrn",
]
