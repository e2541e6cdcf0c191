"""What a device itself can do wrong, which says nothing about the model that was running on it."""

import torch

DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)
"""The memory is full, perhaps with another program's data; the device failed, and serves this process no more."""
