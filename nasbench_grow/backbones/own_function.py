"""A user's own function as a backbone: ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from torch import nn

from nasbench_grow.base.errors import UserError, one_line


def own_function(name: str, num_classes: int | None, in_chans: int) -> nn.Module:
    """What the function gives that ``module:function`` names; the folder of the call is looked in first.

    It is called with ``num_classes`` and ``in_chans`` where it takes them.

    Raises:
        UserError: there is no such function, it fails, or it gives no module.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does; a console script does not
    try:
        function: Any = getattr(importlib.import_module(module_name), function_name)
        offered = {"num_classes": num_classes, "in_chans": in_chans}
        parameters = inspect.signature(function).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        network = function(**{key: value for key, value in offered.items() if open_ended or key in parameters})
    except Exception as error:  # a user's code may raise anything
        raise UserError(
            f"model {name!r} cannot be made ({one_line(error)}); name a function that can be imported from here and "
            "gives a module, as module:function"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"model {name!r} gives a {type(network).__name__}; name a function that gives a torch.nn.Module"
        )
    return network
