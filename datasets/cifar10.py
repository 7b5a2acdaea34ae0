"""``cifar10`` by name, see :mod:`snn_core.datasets.static_pictures`."""

from snn_core.datasets.dataset_info import RegisteredDataset
from snn_core.datasets.static_pictures import CIFAR10, open_cifar10

DATASET = RegisteredDataset(CIFAR10, open_cifar10)
