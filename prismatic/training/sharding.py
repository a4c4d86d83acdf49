"""One model on several processes: torch's FSDP2 (`fully_shard`) by hand, or DDP, and what a step does differently.

Every transformer block is a unit of its own and the rest (embeddings, head, projector) is the root's. A frozen vision
tower is replicated: it is small, and needs neither gradients nor optimizer states.
"""

import os

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from prismatic.models.deferred_weights import to_meta

MODES = ("none", "full", "grad-op", "hybrid")


def check_sharding(mode: str, num_processes: int, per_node: int | None = None) -> None:
    """Checks a mode against the processes there are.

    Raises:
        ValueError: the mode is unknown, or hybrid and the nodes have not as many processes each.
    """
    if mode not in MODES:
        raise ValueError(f"unknown sharding {mode!r}: expected one of {', '.join(MODES)}")
    per_node = per_node or local_processes()
    if mode == "hybrid" and num_processes % per_node:
        raise ValueError(
            f"sharding 'hybrid' shards within a node and replicates across: {num_processes} processes are not a "
            f"multiple of the {per_node} of this node"
        )


def local_processes() -> int:
    """Processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def check_processes(num_processes: int, expected: int | None) -> None:
    """Refuses to train apart: some launch modes start processes that form no group, without a word.

    Raises:
        ValueError: other processes than expected joined, or a launcher announced a group and none was formed.
    """
    advice = (
        "on CPU use recipes/configs/accelerate/cpu-2.yaml or torchrun (accelerate's --cpu and use_cpu: true form no "
        "group), elsewhere look at num_processes of the accelerate config"
    )
    if expected and num_processes != expected:
        raise ValueError(f"--processes is {expected}, but {num_processes} joined one group: {advice}")
    if num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ValueError(f"the launcher was asked for several processes, but this one is alone: {advice}")


def shard(model: nn.Module, mode: str, accelerator, reduce_dtype: torch.dtype = torch.float32) -> nn.Module:
    """What a step trains: the model sharded in place, or DDP around it for mode "none"; itself in one process.

    Args:
        model: a VLM, or peft around one, on its device; an LLM of placeholders gets its weights afterwards.
        mode: `full` shards parameters, gradients and optimizer states; `grad-op` keeps parameters gathered from the
            forward to the backward pass; `hybrid` is `full` within a node and replicates across nodes; `none`.
        accelerator: its group and precision. With bf16, units are gathered and computed in bfloat16.
        reduce_dtype: in which gradients are summed over processes.

    Raises:
        ValueError: the mode does not fit the processes, or torch is too old for it.
        RuntimeError: a trained parameter was left out.
    """
    world = accelerator.num_processes
    check_sharding(mode, world)
    if world == 1:
        return model
    if mode == "none":
        return accelerator.prepare_model(model)
    return fully_sharded(model, mode, accelerator, reduce_dtype)


def fully_sharded(model: nn.Module, mode: str, accelerator, reduce_dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model sharded in place, in a group of any size; arguments and errors are those of `shard`."""
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ValueError(
            f"--sharding {mode} needs torch 2.13 or newer, here is torch {torch.__version__}: set --sharding none, "
            "or update torch"
        )
    compute = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce_dtype)
    options = {
        "mesh": make_mesh(mode, accelerator.device.type, accelerator.num_processes),
        "mp_policy": policy,
        "reshard_after_forward": mode != "grad-op",
    }
    to_meta(model)
    for block in blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options, ignored_params=frozen_tower(model))
    model.set_reduce_scatter_unused_params(True)  # the projector in a step without images: a zero gradient everywhere
    whole = [n for n, p in model.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
    if whole:
        raise RuntimeError(f"trained parameters that no unit shards: {', '.join(whole[:5])} ({len(whole)})")
    return model


def shards(mode: str, num_processes: int) -> bool:
    """Whether anything is sharded: one process alone is not."""
    return num_processes > 1 and mode != "none"


def make_mesh(mode: str, device_type: str, world: int) -> DeviceMesh:
    """All processes in one dimension, or for hybrid nodes times processes of a node."""
    if mode != "hybrid":
        return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))
    per_node = local_processes()
    return init_device_mesh(device_type, (world // per_node, per_node), mesh_dim_names=("replicate", "shard"))


def base_model(model: nn.Module) -> nn.Module:
    """The VLM itself, without what DistributedDataParallel and peft put around it."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The LLM's transformer blocks, and those of a vision backbone that is trained."""
    vlm = base_model(model)
    names = set(vlm.llm._no_split_modules)
    found = [module for module in vlm.llm.modules() if type(module).__name__ in names]
    if not found:
        raise RuntimeError(f"no transformer block of {type(vlm.llm).__name__} found; looked for {', '.join(names)}")
    if frozen_tower(model):
        return found
    towers = [
        module for module in vlm.vision_backbone.modules() if isinstance(getattr(module, "blocks", None), nn.Module)
    ]
    return found + [block for tower in towers for block in tower.blocks]


def frozen_tower(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of a vision backbone that is not trained; empty if it is."""
    parameters = set(base_model(model).vision_backbone.parameters())
    return set() if any(p.requires_grad for p in parameters) else parameters


def synchronise_gradients(model: nn.Module, on: bool) -> None:
    """Whether the next backward pass sums gradients over processes; off while micro-batches accumulate.

    A sharded model sums them after every micro-batch: gradients that wait would be whole, 27 GB for 7B parameters.
    """
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = on


def computes_in(model: nn.Module, accelerator):
    """The precision context of a forward pass: autocast, unless the units of a sharded model are cast themselves."""
    return (
        torch.autocast(accelerator.device.type, enabled=False)
        if isinstance(model, FSDPModule)
        else accelerator.autocast()
    )


def full_state(model: nn.Module, adapters: bool = False) -> dict[str, torch.Tensor] | None:
    """The whole state dict of a sharded model on CPU, on the main process (elsewhere empty); None if it is not sharded.

    All processes call this. `adapters` leaves out what is frozen.
    """
    if not isinstance(model, FSDPModule):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapters)
    state = get_model_state_dict(model, options=options)
    again = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {n for n, _ in model.named_parameters()}
    return {name: value for name, value in state.items() if name not in again}  # tied weights are stored once


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Clips the global norm of the gradients and returns what it was.

    A parameter that no process used gets a zero gradient, so that decay and momentum apply to it in every step,
    whatever the number of processes and the way they are sharded.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def check_finite(model: nn.Module, accelerator, step: int, remedy: str) -> None:
    """Looks at every trained weight; all processes call this.

    Raises:
        FloatingPointError: one is infinite or not a number.
    """
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in trained]
    largest = [torch.linalg.vector_norm(p, torch.inf) for p in local if p.numel()]  # of some, a process has no part
    bad = torch.tensor(float(not all(torch.isfinite(value) for value in largest)), device=accelerator.device)
    if accelerator.reduce(bad, "sum").item():
        raise FloatingPointError(f"weights are not finite after step {step}: they are not saved; {remedy}")
