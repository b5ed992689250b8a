"""Tests on kernels other than this one, in QEMU: by `make test-vm` alone, and as the last part of `make test`."""
