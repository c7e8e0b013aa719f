"""What a watch could leave behind in the process, looked for by where it would be."""

from __future__ import annotations

import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_PLACES = {
    "a global forward pre-hook": modules._global_forward_pre_hooks,
    "a global forward hook": modules._global_forward_hooks,
    "a global always-called hook": modules._global_forward_hooks_always_called,
    "a global hook with kwargs": modules._global_forward_hooks_with_kwargs,
    "a global backward hook": modules._global_backward_hooks,
    "a global module registration hook": modules._global_module_registration_hooks,
    "a global optimizer pre-hook": optimizers._global_optimizer_pre_hooks,
    "a global optimizer post-hook": optimizers._global_optimizer_post_hooks,
}
_ORIGINALS = {
    "the engine": (torch.autograd, "_engine_run_backward", torch.autograd._engine_run_backward),
    "GradScaler.scale": (torch.amp.GradScaler, "scale", torch.amp.GradScaler.scale),
    "GradScaler.step": (torch.amp.GradScaler, "step", torch.amp.GradScaler.step),
    "GradScaler.update": (torch.amp.GradScaler, "update", torch.amp.GradScaler.update),
    "LRScheduler.step": (LRScheduler, "step", LRScheduler.step),
    "ReduceLROnPlateau.step": (ReduceLROnPlateau, "step", ReduceLROnPlateau.step),
}


def traces_left() -> list[str]:
    """What of a watch is still in place, by name."""
    found = [name for name, hooks in _PLACES.items() if len(hooks)]
    found += [name for name, (home, method, original) in _ORIGINALS.items() if getattr(home, method) is not original]
    found += [
        f"an exchanged step of {kind.__name__}" for kind in torch.optim.Optimizer.__subclasses__() if _is_ours(kind)
    ]
    if _get_current_dispatch_mode_stack():
        found.append("a dispatch mode")
    return found


def wrapped_in(model: torch.nn.Module) -> list[str]:
    """The paths of a model's modules whose call is wrapped by a function of ours."""
    calls = [(path, vars(module).get("_compiled_call_impl")) for path, module in model.named_modules()]
    return [path for path, call in calls if getattr(call, "__module__", "").startswith("nantrace")]


def _is_ours(kind: type) -> bool:
    """Whether what torch's wrapper of a class's step calls is a function of ours."""
    cells = getattr(kind.__dict__.get("step"), "__closure__", None) or ()
    return any(getattr(cell.cell_contents, "__module__", "").startswith("nantrace") for cell in cells)
