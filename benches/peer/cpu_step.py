#!/usr/bin/env python3
"""The training step of `sd-step`, and the operations of `cpu-ops`, in PyTorch and diffusers on the CPU, f32.

usage: cpu_step.py --model sd15|sd21|small [--batch N] [--hw H W] [--steps N] [--warmup N] [--threads N] [--json FILE]
       cpu_step.py --ops [--only NAME] [--threads N]

A step: noise, its addition, the UNet forward, the mean squared error, backward, clipping to norm 1, AdamW (fused), zero_grad.
Latents and text states are random, as if cached. Compare CPU seconds (of all threads) where the machine is shared.
Needs requirements.txt beside this file.
"""
import argparse
import json
import resource
import time

import torch
import torch.nn.functional as F


def full(**kwargs):
    cross = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    return dict(block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, down_block_types=cross,
                up_block_types=up, **kwargs)


UNETS = {
    "sd15": full(sample_size=64, attention_head_dim=8, cross_attention_dim=768),
    "sd21": full(sample_size=96, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024,
                 use_linear_projection=True, upcast_attention=True),
    "small": dict(sample_size=24, block_out_channels=[48, 80, 104], layers_per_block=1, attention_head_dim=4,
                  norm_num_groups=8, cross_attention_dim=48,
                  down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
                  up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"]),
}


def peak_rss_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def median(values):
    return round(sorted(values)[len(values) // 2], 3)


def steps(args):
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(**UNETS[args.model]).train()
    prediction = "v_prediction" if args.model == "sd21" else "epsilon"
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                              num_train_timesteps=1000, prediction_type=prediction)
    params = list(unet.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-5, weight_decay=1e-2, fused=True)
    latents = torch.randn(args.batch, 4, *args.hw)
    text = torch.randn(args.batch, 77, unet.config.cross_attention_dim)
    wall, cpu, forward_cpu, backward_cpu = [], [], [], []
    for i in range(args.warmup + args.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (args.batch,))
        target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
        predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text).sample
        loss = F.mse_loss(predicted, target)
        cpu_forward = time.process_time()
        loss.backward()
        cpu_backward = time.process_time()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        took, cpu_took = time.perf_counter() - start, time.process_time() - cpu_start
        print(f"step {i} loss {loss.item():.4f} wall {took:.3f} s cpu {cpu_took:.3f} s (forward "
              f"{cpu_forward - cpu_start:.3f}, backward {cpu_backward - cpu_forward:.3f}) rss {peak_rss_gb():.2f} GB",
              flush=True)
        if i >= args.warmup:
            wall.append(took)
            cpu.append(cpu_took)
            forward_cpu.append(cpu_forward - cpu_start)
            backward_cpu.append(cpu_backward - cpu_forward)
    result = dict(program="pytorch", model=args.model, batch=args.batch, latent=args.hw, steps=args.steps,
                  threads=args.threads, wall_s_median=median(wall), cpu_s_median=median(cpu),
                  forward_cpu_s=median(forward_cpu), backward_cpu_s=median(backward_cpu),
                  update_cpu_s=round(median(cpu) - median(forward_cpu) - median(backward_cpu), 3),
                  peak_rss_gb=round(peak_rss_gb(), 2), torch=torch.__version__)
    print(json.dumps(result))
    if args.json:
        with open(args.json, "a") as out:
            out.write(json.dumps(result) + "\n")


def leaves(*shapes):
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def operations():
    """Name, inputs, function of the inputs."""
    for side, inputs, outputs in [(64, 320, 320), (64, 960, 320), (32, 640, 640), (16, 1280, 1280), (16, 2560, 1280),
                                  (8, 1280, 1280)]:
        yield (f"conv 3x3, {side}x{side}, {inputs} to {outputs}",
               [(1, inputs, side, side), (outputs, inputs, 3, 3), (outputs,)],
               lambda x, w, b: F.conv2d(x, w, b, padding=1))
    for rows, inputs, outputs in [(4096, 320, 320), (4096, 320, 2560), (4096, 1280, 320), (1024, 640, 5120),
                                  (256, 1280, 10240), (77, 768, 320)]:
        yield f"linear, {rows} rows, {inputs} to {outputs}", [(rows, inputs), (outputs, inputs), (outputs,)], F.linear
    for rows, keys, width in [(4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 77, 40), (1024, 77, 80)]:
        yield (f"attention, {rows} rows, {keys} keys, 8x{width}", [(1, 8, rows, width)] + [(1, 8, keys, width)] * 2,
               F.scaled_dot_product_attention)
    for pixels, channels in [(4096, 320), (4096, 960), (1024, 640)]:
        side = int(pixels**0.5)
        yield (f"group norm and SiLU, {pixels} pixels, {channels}", [(1, channels, side, side), (channels,), (channels,)],
               lambda x, w, b: F.silu(F.group_norm(x, 32, w, b, 1e-5)))
    yield ("layer norm, 4096 rows, 320", [(4096, 320), (320,), (320,)],
           lambda x, w, b: F.layer_norm(x, (320,), w, b, 1e-5))

    def geglu(x):
        hidden, gate = x.chunk(2, dim=-1)
        return hidden * F.gelu(gate)

    yield "GEGLU, 4096 rows, 1280", [(4096, 2560)], geglu


def fastest(run, runs=5):
    run()
    best = float("inf")
    for _ in range(runs):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


def ops(args):
    print("| operation | forward, CPU ms | backward, CPU ms |")
    print("|---|---|---|")
    for name, shapes, function in operations():
        if args.only not in name:
            continue
        inputs = leaves(*shapes)
        gradient = torch.randn_like(function(*inputs))

        def both():
            for leaf in inputs:
                leaf.grad = None
            function(*inputs).backward(gradient)

        forward = fastest(lambda: function(*inputs))
        backward = fastest(both) - forward
        print(f"| {name} | {forward * 1e3:.2f} | {backward * 1e3:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=UNETS)
    parser.add_argument("--ops", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--hw", type=int, nargs=2, default=[64, 64])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.ops:
        ops(args)
    elif args.model:
        steps(args)
    else:
        parser.error("--model or --ops")


if __name__ == "__main__":
    main()
