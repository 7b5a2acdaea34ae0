"""``mnist`` by name, see :mod:`snn_core.datasets.static_pictures`."""

from snn_core.datasets.dataset_info import RegisteredDataset
from snn_core.datasets.static_pictures import MNIST, open_mnist

DATASET = RegisteredDataset(MNIST, open_mnist)
