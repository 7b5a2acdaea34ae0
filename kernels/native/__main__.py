"""``python -m snn_core.kernels.native``: build the native libraries in place (CUDA where nvcc is found)."""

from snn_core.kernels.native.build import main

raise SystemExit(main())
