"""A script of the shape of diffusers' train_unconditional.py and its siblings: they have no option for a decay."""

from __future__ import annotations

import argparse
import json

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr_scheduler", default="constant")
    parser.add_argument("--lr_warmup_steps", type=int, default=0)
    parser.add_argument("--max_train_steps", type=int, required=True)
    parser.add_argument("--stop_after", type=int)
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--resume_from_checkpoint")
    args = parser.parse_args()
    set_seed(0)
    accelerator = Accelerator(cpu=True)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    noise_scheduler = DDPMScheduler(num_train_timesteps=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    images = torch.randn(args.max_train_steps * accelerator.num_processes, 1, 8, 8)
    model, optimizer, loader, lr_scheduler = accelerator.prepare(model, optimizer, DataLoader(images), lr_scheduler)
    global_step = 0
    if args.resume_from_checkpoint:
        accelerator.load_state(args.resume_from_checkpoint)
        global_step = args.stop_after or 0
        loader = accelerator.skip_first_batches(loader, global_step)
        args.stop_after = None
    rates = []
    for clean in loader:
        with accelerator.accumulate(model):
            noise, timesteps = torch.randn_like(clean), torch.randint(10, (len(clean),))
            predicted = model(noise_scheduler.add_noise(clean, noise, timesteps), timesteps, return_dict=False)[0]
            accelerator.backward(torch.nn.functional.mse_loss(predicted, noise))
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        global_step += 1
        if global_step == args.stop_after:
            break
    accelerator.save_state(f"{args.output_dir}/checkpoint-{global_step}")
    if accelerator.is_main_process:
        with open(f"{args.output_dir}/rates.jsonl", "a") as file:
            file.writelines(f"{json.dumps(rate)}\n" for rate in rates)
    # The model uses the group of processes, and goes before it: the other way round, some runs never end.
    model, optimizer, lr_scheduler = accelerator.free_memory(model, optimizer, lr_scheduler)
    accelerator.end_training()


if __name__ == "__main__":
    main()
