"""``python -m snn_core.kernels.native``: build the native CPU library in place."""

from snn_core.kernels.native.build import main

raise SystemExit(main())
