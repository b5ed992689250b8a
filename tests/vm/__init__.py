"""Tests on kernels other than this one, in QEMU. Not part of the plain test run: `make test-vm`."""
