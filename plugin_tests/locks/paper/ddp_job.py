"""One of two processes that wrap a locked model in DistributedDataParallel and train a step."""

import os
import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fedml_keylock import KeyLockConfig, lock_model, private_state_dict

rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)  # so that equal public values have been sent
model = nn.Sequential(
    nn.Conv2d(1, 4, 3),
    nn.BatchNorm2d(4),
    nn.ReLU(),
    nn.Conv2d(4, 4, 3),
    nn.Flatten(),
    nn.Linear(64, 3),
)
lock_model(model, KeyLockConfig(lock="paper", layers="all"))
wrapped = DistributedDataParallel(model)
save_file(private_state_dict(model), f"{folder}/private-{rank}.safetensors")
save_file(model.state_dict(), f"{folder}/public-{rank}.safetensors")
optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
cross_entropy(wrapped(torch.rand(4, 1, 8, 8)), torch.arange(4) % 3).backward()
optimizer.step()
save_file(private_state_dict(model), f"{folder}/trained-{rank}.safetensors")
dist.destroy_process_group()
