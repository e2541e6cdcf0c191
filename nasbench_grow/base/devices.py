"""What can go wrong around a model that is being run, and says nothing about the model."""

import torch

DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError, TimeoutError)
"""The memory is full, perhaps with another program's data; the device failed, and serves this process no more; whoever
called has waited long enough, and an alarm of theirs says so."""
