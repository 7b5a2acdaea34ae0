"""The command line ``snn``: thin commands over the Python API."""
